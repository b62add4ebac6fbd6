//! A PNG encoder for small pictures with transparency: eight bits of alpha per pixel and one
//! colour, which is all that a heat map on an unknown background needs.

use std::io::Write as _;

use flate2::{Compression, Crc, write::ZlibEncoder};

const SIGNATURE: [u8; 8] = [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n'];

/// A picture of one colour in 256 strengths. `alpha` holds rows from the top, each `width`
/// long.
///
/// The pixels are indices into a palette whose entries differ only in alpha.
///
/// # Panics
/// If `alpha` is not `width × height` long or either is zero.
pub fn encode(width: u32, height: u32, color: [u8; 3], alpha: &[u8]) -> Vec<u8> {
    assert!(width > 0 && height > 0, "a PNG has at least one pixel");
    assert_eq!(alpha.len(), width as usize * height as usize, "one byte per pixel");

    let mut header = Vec::with_capacity(13);
    header.extend_from_slice(&width.to_be_bytes());
    header.extend_from_slice(&height.to_be_bytes());
    // Eight bits, palette, deflate, no filter, no interlace.
    header.extend_from_slice(&[8, 3, 0, 0, 0]);
    let palette: Vec<u8> = color.iter().copied().cycle().take(3 * 256).collect();
    let transparency: Vec<u8> = (0..=255).collect();

    let mut file = SIGNATURE.to_vec();
    chunk(&mut file, b"IHDR", &header);
    chunk(&mut file, b"PLTE", &palette);
    chunk(&mut file, b"tRNS", &transparency);
    chunk(&mut file, b"IDAT", &compress(width, alpha));
    chunk(&mut file, b"IEND", &[]);
    file
}

fn compress(width: u32, pixels: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    for row in pixels.chunks(width as usize) {
        // Every row begins with its filter: none.
        encoder.write_all(&[0]).expect("writing to memory");
        encoder.write_all(row).expect("writing to memory");
    }
    encoder.finish().expect("writing to memory")
}

fn chunk(file: &mut Vec<u8>, kind: &[u8; 4], body: &[u8]) {
    let mut crc = Crc::new();
    crc.update(kind);
    crc.update(body);
    file.extend_from_slice(&(body.len() as u32).to_be_bytes());
    file.extend_from_slice(kind);
    file.extend_from_slice(body);
    file.extend_from_slice(&crc.sum().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn chunks_are_whole_and_pixels_come_back() {
        let pixels = [0, 10, 20, 255, 128, 64];
        let file = encode(3, 2, [1, 2, 3], &pixels);
        assert_eq!(file[..8], SIGNATURE);

        let mut kinds = Vec::new();
        let mut rest = &file[8..];
        let mut compressed = Vec::new();
        while !rest.is_empty() {
            let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
            let (kind, body) = (&rest[4..8], &rest[8..8 + length]);
            let mut crc = Crc::new();
            crc.update(&rest[4..8 + length]);
            assert_eq!(crc.sum().to_be_bytes(), rest[8 + length..12 + length]);
            if kind == b"IDAT" {
                compressed.extend_from_slice(body);
            }
            kinds.push(String::from_utf8_lossy(kind).into_owned());
            rest = &rest[12 + length..];
        }
        assert_eq!(kinds, ["IHDR", "PLTE", "tRNS", "IDAT", "IEND"]);
        let mut rows = Vec::new();
        flate2::read::ZlibDecoder::new(compressed.as_slice()).read_to_end(&mut rows).unwrap();
        assert_eq!(rows, [0, 0, 10, 20, 0, 255, 128, 64]);
    }
}
