//! An input as several byte strings: each is two bytes of length, little-endian, and so many bytes.
//! A length that is too long takes all that is left, so every input has a meaning.

/// The pieces of an input.
pub fn of(mut data: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (piece, rest) = rest.split_at(length);
        pieces.push(piece);
        data = rest;
    }
    pieces
}

/// The first eight bytes as a number, as far as they are there, and the rest.
pub fn number(data: &[u8]) -> (u64, &[u8]) {
    let (number, rest) = data.split_at(data.len().min(8));
    let mut bytes = [0; 8];
    bytes[..number.len()].copy_from_slice(number);
    (u64::from_le_bytes(bytes), rest)
}

/// The first byte, if there is one, and the rest.
pub fn byte(data: &[u8]) -> (u8, &[u8]) {
    match data.split_first() {
        Some((first, rest)) => (*first, rest),
        None => (0, data),
    }
}
