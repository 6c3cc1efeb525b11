//! The comparison of the write modes as a picture: records a second on a logarithmic scale, a panel
//! for each number of writers, a bar for each mode. Pure: figures in, SVG out.

use std::fmt::Write;

use super::{MODES, SIZES, WRITERS};

/// One colour for an engine, darker the more is done before a record is acknowledged.
const COLOURS: [&str; 6] = [
    "#08519c", "#4292c6", "#9ecae1", "#a63603", "#f16913", "#fdae6b",
];

/// The scale, as powers of ten.
const LOWEST: i32 = 2;
const HIGHEST: i32 = 6;

const WIDTH: f64 = 920.0;
const HEIGHT: f64 = 400.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 340.0;
const LEFT: f64 = 60.0;
/// Of a panel.
const PANEL: f64 = 400.0;
const GAP: f64 = 40.0;
const BAR: f64 = 18.0;

/// Where a rate is drawn.
fn height_of(rate: f64) -> f64 {
    let share = (rate.log10() - f64::from(LOWEST)) / f64::from(HIGHEST - LOWEST);
    BOTTOM - share.clamp(0.0, 1.0) * (BOTTOM - TOP)
}

fn label(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
    );
}

/// The picture; `None` if a figure is missing. `rate` is asked for size, writers and mode.
pub fn svg(rate: &dyn Fn(u64, u64, &str) -> Option<f64>) -> Option<String> {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>Records a second by engine, write mode, size and writers</title>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    for (place, mode) in MODES.iter().enumerate() {
        let x = LEFT + place as f64 * 140.0;
        let colour = COLOURS[place];
        _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"14\" width=\"12\" height=\"12\" fill=\"{colour}\"/>"
        );
        label(&mut svg, x + 17.0, 24.0, "start", &mode.replace('-', " "));
    }
    for (panel, (writers, writers_text)) in WRITERS.iter().enumerate() {
        let left = LEFT + panel as f64 * (PANEL + GAP);
        label(&mut svg, left + PANEL / 2.0, 52.0, "middle", writers_text);
        for power in LOWEST..=HIGHEST {
            let y = height_of(10_f64.powi(power));
            _ = writeln!(
                svg,
                "<line x1=\"{left:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" \
                 stroke=\"#cccccc\"/>",
                left + PANEL
            );
            if panel == 0 {
                let text = match power {
                    6 => "1M/s".to_owned(),
                    3.. => format!("{}k/s", 10_u32.pow(power as u32 - 3)),
                    _ => format!("{}/s", 10_u32.pow(power as u32)),
                };
                label(&mut svg, left - 6.0, y + 4.0, "end", &text);
            }
        }
        let group_width = PANEL / SIZES.len() as f64;
        for (group, (size, size_text)) in SIZES.iter().enumerate() {
            let middle = left + group_width * (group as f64 + 0.5);
            label(&mut svg, middle, BOTTOM + 20.0, "middle", size_text);
            let first = middle - BAR * MODES.len() as f64 / 2.0;
            for (place, mode) in MODES.iter().enumerate() {
                let found = rate(*size, *writers, mode)?;
                let (x, y) = (first + place as f64 * BAR, height_of(found));
                _ = writeln!(
                    svg,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" \
                     fill=\"{}\"><title>{mode}, {size_text}, {writers_text}: {found:.0}/s</title>\
                     </rect>",
                    BAR - 2.0,
                    BOTTOM - y,
                    COLOURS[place]
                );
            }
        }
    }
    label(
        &mut svg,
        WIDTH / 2.0,
        HEIGHT - 12.0,
        "middle",
        "records a second, logarithmic scale",
    );
    svg += "</svg>\n";
    Some(svg)
}
