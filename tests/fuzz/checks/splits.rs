//! In which parts a stream of bytes arrives: at once, byte by byte, and in parts whose lengths
//! follow from the bytes.

/// A stream of bytes in some parts.
pub type Split<'a> = Vec<&'a [u8]>;

/// The splits to try, the first of which is the whole.
pub fn of(data: &[u8]) -> [Split<'_>; 3] {
    let bytewise = data.chunks(1).collect();
    [vec![data], bytewise, irregular(data)]
}

fn irregular(mut data: &[u8]) -> Split<'_> {
    let mut numbers = Numbers::of(data);
    let mut split = Vec::new();
    while !data.is_empty() {
        // Mostly short parts, where the borders are, and now and then a long one.
        let length = match numbers.below(8) {
            0 => 1 + numbers.below(4096),
            1..=3 => 1 + numbers.below(64),
            _ => 1 + numbers.below(8),
        };
        let (part, rest) = data.split_at(length.min(data.len()));
        split.push(part);
        data = rest;
    }
    split
}

/// Numbers that follow from bytes (FNV-1a, then SplitMix64).
pub struct Numbers(u64);

impl Numbers {
    /// Those of these bytes.
    pub fn of(bytes: &[u8]) -> Numbers {
        let add = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        Numbers(bytes.iter().fold(0xcbf2_9ce4_8422_2325, add))
    }

    /// The next one, below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 33) as usize % limit
    }
}
