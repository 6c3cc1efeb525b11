//! What `tolerex bench` says: the figures for people or as JSON, and the progress line.

use std::sync::atomic::Ordering;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::driver::Shared;
use super::recorder::Recorder;
use super::workload::{End, Generator, Load};
use crate::cli::args::Protocol;

/// What was measured, with the settings; its JSON form is the serialisation of this.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Requests done a second.
    pub ops_per_s: f64,
    /// Latency that half of the requests did not exceed, in microseconds.
    pub p50_us: u64,
    /// The same for 90 %.
    pub p90_us: u64,
    /// The same for 99 %.
    pub p99_us: u64,
    /// The same for 99.9 %.
    pub p999_us: u64,
    /// The longest latency.
    pub max_us: u64,
    /// Requests that were not done, or of which that is unknown.
    pub errors: u64,
    /// Those of them that are writes which may have happened.
    pub unknown: u64,
    /// Connections that were opened again, after they broke or their leader led no more.
    pub reopened: u64,
    /// Why the first one was not.
    pub first_error: Option<String>,
    /// Requests done.
    pub ops: u64,
    /// Requests that were due and not sent when the load ended; only with a rate.
    pub unsent: u64,
    /// How long it took, in seconds, without the warm-up.
    pub elapsed_s: f64,
    /// Whether it was ended early.
    pub interrupted: bool,
    /// Microseconds of processor time for each request of all servers together; only with
    /// `--data-dir`, which names them.
    pub server_cpu_us_per_op: Option<f64>,
    /// The same of this process.
    pub bench_cpu_us_per_op: Option<f64>,
    /// The kind of client that drove the connections.
    pub generator: Generator,
    /// The number of its threads.
    pub threads: usize,
    /// What the requests were spoken in.
    pub protocol: Protocol,
    /// Where the active leader takes it, when it began.
    pub addr: String,
    /// Connections.
    pub connections: usize,
    /// Requests in flight on each.
    pub pipeline: usize,
    /// Payload bytes of a message.
    pub size: usize,
    /// Requests a second that were asked for.
    pub rate: Option<f64>,
    /// How long was asked for.
    pub seconds: Option<f64>,
    /// How many requests were asked for.
    pub count: Option<u64>,
    /// Share of GETs.
    pub get_ratio: f64,
    /// Different keys.
    pub keys: u64,
    /// The warm-up before, in seconds.
    pub warmup_s: f64,
}

/// What a load came to, beside what was recorded.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Threads that drove the connections.
    pub threads: usize,
    /// From the end of the warm-up to the last reply.
    pub elapsed: Duration,
    /// Before it.
    pub warmup: Duration,
    /// Whether it was ended early.
    pub interrupted: bool,
    /// Processor time of all servers.
    pub server_cpu: Option<Duration>,
    /// Processor time of this process.
    pub bench_cpu: Option<Duration>,
}

impl Report {
    /// Puts the figures together.
    pub fn new(addr: &str, load: &Load, recorder: &Recorder, run: Run) -> Report {
        let ops = recorder.ops();
        let seconds = run.elapsed.as_secs_f64();
        let each = |cpu: Duration| tenth(cpu.as_secs_f64() * 1e6 / ops.max(1) as f64);
        Report {
            ops_per_s: if seconds > 0.0 {
                tenth(ops as f64 / seconds)
            } else {
                0.0
            },
            p50_us: recorder.quantile_us(0.5),
            p90_us: recorder.quantile_us(0.9),
            p99_us: recorder.quantile_us(0.99),
            p999_us: recorder.quantile_us(0.999),
            max_us: recorder.max_us(),
            errors: recorder.errors(),
            unknown: recorder.unknowns(),
            reopened: recorder.reopenings(),
            first_error: recorder.first_error().map(str::to_owned),
            ops,
            unsent: recorder.unsent(),
            elapsed_s: seconds,
            interrupted: run.interrupted,
            server_cpu_us_per_op: run.server_cpu.map(each),
            bench_cpu_us_per_op: run.bench_cpu.map(each),
            generator: load.generator,
            threads: run.threads,
            protocol: load.protocol,
            addr: addr.to_owned(),
            connections: load.connections,
            pipeline: load.pipeline,
            size: load.size,
            rate: load.rate,
            seconds: match load.end {
                End::After(time) => Some(time.as_secs_f64()),
                End::Count(_) => None,
            },
            count: match load.end {
                End::After(_) => None,
                End::Count(count) => Some(count),
            },
            get_ratio: load.get_ratio,
            keys: load.keys,
            warmup_s: run.warmup.as_secs_f64(),
        }
    }

    /// One line of JSON.
    pub fn json(&self) -> String {
        let text = serde_json::to_string(self);
        text.expect("numbers and texts have a JSON form") + "\n"
    }

    /// Some lines for a person.
    pub fn text(&self) -> String {
        let what = match self.get_ratio {
            0.0 => "SET".to_owned(),
            1.0 => "GET".to_owned(),
            ratio => format!("{:.0} % GET, the others SET", ratio * 100.0),
        };
        let rate = self
            .rate
            .map_or(String::new(), |rate| format!(", {rate}/s asked for"));
        let by = match self.protocol {
            Protocol::Hatokuse => "",
            Protocol::Http => ", by HTTP",
        };
        let mut text = format!(
            "{what}: {} bytes, {} connections, pipeline {}, {} keys{rate}{by}, at {}\n",
            self.size, self.connections, self.pipeline, self.keys, self.addr
        );
        text += &match (self.generator, self.threads) {
            (Generator::Epoll, 1) => "generator: epoll, 1 thread for all connections\n".to_owned(),
            (Generator::Epoll, threads) => {
                format!("generator: epoll, {threads} threads for all connections\n")
            }
            (Generator::Blocking, threads) => {
                let s = if threads == 1 { "" } else { "s" };
                format!("generator: blocking, {threads} thread{s}, one for each connection\n")
            }
        };
        let early = if self.interrupted {
            ", ended early"
        } else {
            ""
        };
        text += &format!(
            "{:.0} ops/s: {} in {:.2} s{early} (warm-up before: {:.1} s, not counted)\n",
            self.ops_per_s, self.ops, self.elapsed_s, self.warmup_s
        );
        text += &format!(
            "p50 {} us, p90 {} us, p99 {} us, p99.9 {} us, max {} us\n",
            self.p50_us, self.p90_us, self.p99_us, self.p999_us, self.max_us
        );
        if let (Some(servers), Some(bench)) = (self.server_cpu_us_per_op, self.bench_cpu_us_per_op)
        {
            text +=
                &format!("cpu for each: {servers} us of all servers, {bench} us of the bench\n");
        }
        if self.unsent > 0 {
            text += &format!("{} were due and not sent when it ended\n", self.unsent);
        }
        if self.reopened > 0 {
            text += &format!("{} connections were opened again\n", self.reopened);
        }
        text += &format!("errors: {}", self.errors);
        if self.unknown > 0 {
            text += &format!(" ({} writes may have happened)", self.unknown);
        }
        if let Some(error) = &self.first_error {
            text += &format!(", the first: {error}");
        }
        text + "\n"
    }
}

fn tenth(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// The line on a terminal's standard error; nothing anywhere else.
pub struct Progress {
    bar: ProgressBar,
    what: &'static str,
    answered: u64,
    /// Smoothed over some intervals; requests a second.
    rate: f64,
}

impl Progress {
    /// Begins a line.
    pub fn new(what: &'static str) -> Progress {
        let style = ProgressStyle::with_template("{msg}");
        let bar = ProgressBar::new_spinner();
        bar.set_style(style.expect("the template is well formed"));
        Progress {
            bar,
            what,
            answered: 0,
            rate: 0.0,
        }
    }

    /// Shows how it stands. `interval` has passed since the last time.
    pub fn show(&mut self, shared: &Shared, interval: Duration, left: Option<Duration>) {
        let answered = shared.answered.load(Ordering::Relaxed);
        let failed = shared.failed.load(Ordering::Relaxed);
        let new = (answered - self.answered) as f64 / interval.as_secs_f64().max(1e-6);
        self.rate = if self.answered == 0 {
            new
        } else {
            self.rate * 0.7 + new * 0.3
        };
        self.answered = answered;
        let left = left.map_or(String::new(), |left| format!(", {} s left", left.as_secs()));
        let (what, rate) = (self.what, self.rate);
        let text = format!("{what}: {answered} answered, {rate:.0}/s, {failed} errors{left}");
        self.bar.set_message(text);
        self.bar.tick();
    }

    /// Removes the line.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(run: Run) -> Report {
        let mut recorder = Recorder::default();
        (0..100).for_each(|_| recorder.done(Duration::from_micros(250)));
        recorder.failed(2, || "ERROR: busy, try again".to_owned());
        recorder.unknown(1, || "a connection broke".to_owned());
        recorder.reopened();
        let load = Load {
            generator: Generator::Blocking,
            protocol: Protocol::Http,
            connections: 64,
            pipeline: 16,
            size: 100,
            rate: Some(1000.0),
            end: End::Count(103),
            get_ratio: 0.0,
            keys: 7,
        };
        Report::new("h:1", &load, &recorder, run)
    }

    const RUN: Run = Run {
        threads: 64,
        elapsed: Duration::from_millis(500),
        warmup: Duration::ZERO,
        interrupted: false,
        server_cpu: Some(Duration::from_millis(3)),
        bench_cpu: Some(Duration::from_millis(1)),
    };

    #[test]
    fn json_has_the_promised_fields_on_one_line() {
        let text = report(RUN).json();
        assert_eq!(text.lines().count(), 1);
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        for (field, expected) in [
            ("ops_per_s", 200.0),
            ("p50_us", 250.0),
            ("p999_us", 250.0),
            ("errors", 3.0),
            ("unknown", 1.0),
            ("reopened", 1.0),
            ("connections", 64.0),
            ("pipeline", 16.0),
            ("size", 100.0),
            ("rate", 1000.0),
            ("count", 103.0),
            ("keys", 7.0),
            ("server_cpu_us_per_op", 30.0),
        ] {
            let found = json[field].as_f64().unwrap_or(f64::NAN);
            assert!((found - expected).abs() <= 1.0, "{field}: {found}");
        }
        assert_eq!(json["protocol"], "http");
        assert_eq!(
            (&json["generator"], &json["threads"]),
            (&"blocking".into(), &64.into())
        );
        assert!(json["seconds"].is_null() && json["max_us"].is_u64());
    }

    #[test]
    fn a_load_that_ended_at_once_has_no_rate() {
        let nothing = Run {
            elapsed: Duration::ZERO,
            interrupted: true,
            ..RUN
        };
        let report = report(nothing);
        assert_eq!(report.ops_per_s, 0.0);
        let text = report.text();
        assert!(text.contains("ended early"), "{text}");
        let generator = "generator: blocking, 64 threads, one for each connection";
        assert!(text.contains(generator), "{text}");
        let errors = "errors: 3 (1 writes may have happened), the first: ERROR: busy";
        assert!(text.contains(errors), "{text}");
    }
}
