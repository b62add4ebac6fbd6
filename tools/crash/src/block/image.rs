//! A disk's contents in memory: mostly zeros, so only the blocks that are not are ever copied.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result};
use rustix::fs::FallocateFlags;

/// What the present blocks are counted in.
pub const BLOCK_BYTES: usize = 4096;

/// Bytes of a disk.
#[derive(Clone, Debug)]
pub struct Image {
    bytes: Vec<u8>,
    /// Blocks that have ever been written with something else than zeros.
    present: Vec<bool>,
}

impl Image {
    /// All zeros.
    pub fn new(bytes: usize) -> Image {
        Image { bytes: vec![0; bytes], present: vec![false; bytes / BLOCK_BYTES] }
    }

    /// As a file has it.
    pub fn read(file: &File, bytes: usize) -> Result<Image> {
        let mut image = Image::new(bytes);
        let mut block = vec![0; 1 << 20];
        for offset in (0..bytes).step_by(block.len()) {
            let length = block.len().min(bytes - offset);
            file.read_exact_at(&mut block[..length], offset as u64).context("reading an image")?;
            for (at, chunk) in block[..length].chunks(BLOCK_BYTES).enumerate() {
                if !is_zero(chunk) {
                    image.write(offset + at * BLOCK_BYTES, chunk);
                }
            }
        }
        Ok(image)
    }

    /// Its length.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// A part of it.
    pub fn slice(&self, offset: usize, length: usize) -> &[u8] {
        &self.bytes[offset..offset + length]
    }

    /// Changes a part of it.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
        let blocks = offset / BLOCK_BYTES..(offset + data.len()).div_ceil(BLOCK_BYTES);
        for block in blocks {
            let start = block * BLOCK_BYTES;
            self.present[block] = !is_zero(&self.bytes[start..start + BLOCK_BYTES]);
        }
    }

    /// Makes a file hold exactly this.
    pub fn store(&self, file: &File) -> Result<()> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(file, punch, 0, self.bytes.len() as u64).context("clearing")?;
        let mut block = 0;
        while block < self.present.len() {
            let run = self.present[block..].iter().take_while(|present| **present).count();
            if run > 0 {
                let (from, to) = (block * BLOCK_BYTES, (block + run) * BLOCK_BYTES);
                file.write_all_at(&self.bytes[from..to], from as u64).context("storing")?;
            }
            block += run.max(1);
        }
        Ok(())
    }
}

/// Whether all of it is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    bytes.chunks(BLOCK_BYTES).all(|chunk| *chunk == ZEROS[..chunk.len()])
}
