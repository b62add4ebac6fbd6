//! Little-endian numbers, and bytes with their length before them: what records and snapshots are
//! made of. A length is compared with its limit, and with what is left, before anything is allocated.

/// Why bytes cannot be read.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// They end too early.
    #[error("the bytes end in {what}: {needed} more are needed, {left} are left")]
    Short {
        /// Where.
        what: &'static str,
        /// What it takes.
        needed: usize,
        /// What is left.
        left: usize,
    },
    /// A length or count beyond its limit.
    #[error("{what} of {length}; at most {limit} are taken")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// Text that is not UTF-8.
    #[error("{what} is not UTF-8")]
    NotText {
        /// What it is.
        what: &'static str,
    },
    /// A value that has no meaning here.
    #[error("{what} is {value}, which says nothing here")]
    Value {
        /// What it is.
        what: &'static str,
        /// What it says.
        value: u64,
    },
    /// Something is not where it must be.
    #[error("{0}")]
    Place(&'static str),
}

/// What is left to be read.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `length` bytes.
    pub(crate) fn take(
        &mut self,
        length: usize,
        what: &'static str,
    ) -> Result<&'a [u8], Malformed> {
        let left = self.0.len();
        let short = Malformed::Short { what, needed: length, left };
        let (taken, rest) = self.0.split_at_checked(length).ok_or(short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        Ok(self.take(N, what)?.try_into().expect("exactly as many were taken"))
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        self.array(what).map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Bytes behind a length of 4 bytes.
    pub(crate) fn bytes(
        &mut self,
        limit: usize,
        what: &'static str,
    ) -> Result<&'a [u8], Malformed> {
        let length = self.u32(what)? as usize;
        self.limited(length, limit, what)?;
        self.take(length, what)
    }

    /// Text behind a length of 2 bytes.
    pub(crate) fn text(&mut self, limit: usize, what: &'static str) -> Result<&'a str, Malformed> {
        let length = self.u16(what)? as usize;
        self.limited(length, limit, what)?;
        std::str::from_utf8(self.take(length, what)?).map_err(|_| Malformed::NotText { what })
    }

    /// A count of 4 bytes, of items that have at least `item_bytes` each and follow it.
    pub(crate) fn count(
        &mut self,
        limit: usize,
        item_bytes: usize,
        what: &'static str,
    ) -> Result<usize, Malformed> {
        let count = self.u32(what)? as usize;
        self.limited(count, limit, what)?;
        let (needed, left) = (count * item_bytes, self.0.len());
        if needed > left { Err(Malformed::Short { what, needed, left }) } else { Ok(count) }
    }

    fn limited(&self, length: usize, limit: usize, what: &'static str) -> Result<(), Malformed> {
        if length > limit { Err(Malformed::TooLong { what, length, limit }) } else { Ok(()) }
    }
}

/// Where bytes are put. Lengths were checked before: see the limits.
pub(crate) trait Put {
    fn put(&mut self, bytes: &[u8]);

    fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    fn put_count(&mut self, count: usize) {
        self.put_u32(u32::try_from(count).expect("counts are limited"));
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        self.put_count(bytes.len());
        self.put(bytes);
    }

    fn put_text(&mut self, text: &str) {
        self.put_u16(u16::try_from(text.len()).expect("texts are limited"));
        self.put(text.as_bytes());
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_read() {
        let mut bytes = Vec::new();
        bytes.put_u8(1);
        bytes.put_u16(2);
        bytes.put_u32(3);
        bytes.put_u64(4);
        bytes.put_text("five");
        bytes.put_bytes(b"six");
        let mut reader = Reader(&bytes);
        assert_eq!(reader.u8("a"), Ok(1));
        assert_eq!(reader.u16("b"), Ok(2));
        assert_eq!(reader.u32("c"), Ok(3));
        assert_eq!(reader.u64("d"), Ok(4));
        assert_eq!(reader.text(4, "e"), Ok("five"));
        assert_eq!(reader.bytes(3, "f"), Ok(&b"six"[..]));
        assert_eq!(reader.u8("g"), Err(Malformed::Short { what: "g", needed: 1, left: 0 }));
    }

    #[test]
    fn a_length_is_compared_before_it_is_used() {
        let bomb = [0xff; 8];
        let limited = |length| Malformed::TooLong { what: "x", length, limit: 9 };
        assert_eq!(Reader(&bomb).text(9, "x"), Err(limited(0xffff)));
        assert_eq!(Reader(&bomb).bytes(9, "x"), Err(limited(0xffff_ffff)));
        assert_eq!(Reader(&bomb).count(9, 1, "x"), Err(limited(0xffff_ffff)));
        let nine = [9, 0, 0, 0, 0, 0];
        let short = |needed| Malformed::Short { what: "x", needed, left: 2 };
        assert_eq!(Reader(&nine).count(9, 8, "x"), Err(short(72)));
        assert_eq!(Reader(&nine).bytes(9, "x"), Err(short(9)));
    }
}
