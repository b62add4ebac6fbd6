//! Checks one shard: its files, its journal as recovery sees it, every batch of it, its anchor.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::disk::blocking::BlockingDisk;
use crate::disk::{BLOCK_BYTES, Disk};
use crate::error::OpenError;
use crate::format::{AnchorHeader, JournalEnd, SegmentHeader};
use crate::opening::{ANCHOR, Survey};
use crate::recovery::{Damage, WalkedContents, WalkedSegment};

use super::files::{
    Owner, SegmentFile, assumptions, header_blocks, put_back, read_file, segment_files,
};
use super::loss::find_cut;
use super::places::Source;
use super::remedy::Remedy;
use super::segment_check::{SegmentCheck, check_segment};
use super::short::{Behind, behind};
use super::site::Site;
use super::verify::{Finding, Severity, Verification};
use super::{Cut, StreamRange, spans_by_generation};

/// A shard as it is, or would be with its headers repaired.
pub(super) struct Examined {
    pub(super) disk: BlockingDisk,
    pub(super) survey: Survey,
    pub(super) files: Vec<SegmentFile>,
    /// Headers that a repair would write or names that it would give back.
    pub(super) assumed: HashMap<String, SegmentHeader>,
}

/// Surveys a shard, with whatever headers can be rebuilt.
pub(super) fn examine(site: &Site, shard: u16) -> Result<Examined, OpenError> {
    let mut disk = site.disk(shard)?;
    let files = segment_files(site, shard, &mut disk)?;
    let mut assumed = HashMap::new();
    loop {
        let (disk, survey) = site.survey(shard, None, &assumed)?;
        // A segment that is found again may tell the header of the next.
        let more = assumptions(site, shard, &files, &survey);
        if more.keys().all(|name| assumed.contains_key(name)) {
            return Ok(Examined { disk, survey, files, assumed });
        }
        assumed.extend(more);
    }
}

/// Checks a shard and adds what is found.
pub(super) fn check_shard(
    site: &Site,
    shard: u16,
    verification: &mut Verification,
) -> Result<(), OpenError> {
    let examined = match examine(site, shard) {
        Ok(examined) => examined,
        Err(OpenError::Corrupt(corruption)) => {
            if site.directory.lost_shard(shard).is_some() {
                verification.cuts.push(Cut::whole(shard));
            }
            verification.findings.extend(corruption.damages.into_iter().map(|damage| Finding {
                severity: Severity::Corrupt,
                shard: Some(shard),
                file: damage.file.into(),
                bytes: damage.bytes,
                what: damage.what,
                lost: Vec::new(),
                lost_untold: true,
                remedy: None,
            }));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let mut check = ShardCheck { site, shard, examined, findings: Vec::new() };
    check.check_files();
    check.check_lengths()?;
    check.check_anchor()?;
    let segments = check.check_segments(verification)?;
    check.check_journal();
    if check.findings.iter().any(|finding| finding.severity == Severity::Corrupt) {
        let cut = find_cut(site, shard, &check.examined, &segments)?;
        verification.cuts.extend(cut);
    }
    verification.findings.append(&mut check.findings);
    Ok(())
}

struct ShardCheck<'a> {
    site: &'a Site,
    shard: u16,
    examined: Examined,
    findings: Vec<Finding>,
}

impl ShardCheck<'_> {
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(Site::shard_name(self.shard)).join(name)
    }

    fn finding(&self, severity: Severity, name: &str, what: impl Into<String>) -> Finding {
        Finding {
            severity,
            shard: Some(self.shard),
            file: self.path(name),
            bytes: 0..0,
            what: what.into(),
            lost: Vec::new(),
            lost_untold: false,
            remedy: None,
        }
    }

    fn check_files(&mut self) {
        let findings: Vec<_> =
            self.examined.files.iter().flat_map(|file| self.check_file(file)).collect();
        self.findings.extend(findings);
    }

    fn check_file(&self, file: &SegmentFile) -> Vec<Finding> {
        let repairable = |what: String, remedy| Finding {
            remedy: Some(remedy),
            ..self.finding(Severity::Repairable, &file.name, what)
        };
        let path = || self.path(&file.name);
        let mut findings = Vec::new();
        match file.owner(self.site, self.shard) {
            Owner::OtherEngine => {
                let remedy = Remedy::SetAside { file: path() };
                findings.push(repairable("belongs to another engine".into(), remedy));
                return findings;
            }
            Owner::Misplaced { shard, number } => {
                let what = if shard == self.shard {
                    format!("was renamed: its header says segment {number}")
                } else {
                    format!("belongs to shard {shard}")
                };
                findings.push(repairable(what, put_back(self.site, path(), shard, number)));
            }
            Owner::This => findings.extend(self.check_copies(file)),
            Owner::Unknown => findings.extend(self.check_headless(file)),
        }
        findings
    }

    /// Segments that are shorter than they were made.
    fn check_lengths(&mut self) -> Result<(), OpenError> {
        let segment_bytes = self.site.directory.segment_bytes;
        let files = std::mem::take(&mut self.examined.files);
        for file in &files {
            let is_ours = match file.owner(self.site, self.shard) {
                Owner::This | Owner::Misplaced { .. } => true,
                Owner::Unknown => self.examined.assumed.contains_key(&file.name),
                Owner::OtherEngine => false,
            };
            if !is_ours || file.length >= segment_bytes {
                continue;
            }
            let path = self.site.directory.shard_path(self.shard).join(&file.name);
            let behind = behind(&mut self.examined, file).map_err(OpenError::io("read", path))?;
            let (severity, note) = match behind {
                Behind::Nothing => (Severity::Repairable, "no batch was behind its end"),
                Behind::Told => {
                    (Severity::Corrupt, "it was cut off, and what was behind its end is gone")
                }
                Behind::Untold => (
                    Severity::Corrupt,
                    "it was cut off, and what was behind its end is gone; how many records that \
                     were, nothing tells",
                ),
            };
            let what =
                format!("is {} bytes long and should be {segment_bytes}: {note}", file.length);
            let mut finding = self.finding(severity, &file.name, what);
            finding.bytes = file.length..segment_bytes;
            finding.lost_untold = behind == Behind::Untold;
            finding.remedy = Some(Remedy::Extend {
                file: self.path(&file.name),
                from: file.length,
                length: segment_bytes,
            });
            self.findings.push(finding);
        }
        self.examined.files = files;
        Ok(())
    }

    /// The two copies of a header that counts must both be right, and the same.
    fn check_copies(&self, file: &SegmentFile) -> Option<Finding> {
        let header = file.header()?;
        let generation = header.generation.get();
        let mut live = self.examined.survey.recovered.live.iter();
        if !live.any(|segment| segment.found.generation() == generation) {
            return None;
        }
        let written = header_blocks(&header);
        let bytes = |block: usize| block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES;
        let wrong: Vec<usize> = (0..2)
            .filter(|copy| {
                let length = size_of::<SegmentHeader>();
                let at = copy * BLOCK_BYTES;
                file.blocks.get(at..at + length) != Some(&written[at..at + length])
            })
            .collect();
        let first = *wrong.first()?;
        let mut finding = self.finding(
            Severity::Repairable,
            &file.name,
            format!("copy {} of its header is damaged; the other one is right", first + 1),
        );
        finding.bytes = bytes(first).start as u64..bytes(first).end as u64;
        let writes =
            wrong.iter().map(|copy| (bytes(*copy).start as u64, written[bytes(*copy)].to_vec()));
        finding.remedy = Some(Remedy::Write {
            file: self.path(&file.name),
            writes: writes.collect(),
            what: "write the damaged copy of its header again, from the other one",
        });
        Some(finding)
    }

    fn check_headless(&self, file: &SegmentFile) -> Option<Finding> {
        let header = self.examined.assumed.get(&file.name)?;
        let what = "both copies of its header are damaged; its batches tell it";
        let mut finding = self.finding(Severity::Repairable, &file.name, what);
        finding.bytes = 0..crate::format::DATA_START;
        finding.remedy = Some(Remedy::Write {
            file: self.path(&file.name),
            writes: vec![(0, header_blocks(header))],
            what: "write its header again, from its batches",
        });
        Some(finding)
    }

    /// Reads every live segment.
    fn check_segments(
        &mut self,
        verification: &mut Verification,
    ) -> Result<HashMap<u64, SegmentCheck>, OpenError> {
        let reader = self.examined.disk.reader();
        let segment_bytes = self.site.directory.segment_bytes;
        let (mut checks, mut findings) = (HashMap::new(), Vec::new());
        let spans = spans_by_generation(&self.examined.survey.recovered.index);
        for segment in &self.examined.survey.recovered.live {
            let found = &segment.found;
            let path = self.site.directory.shard_path(self.shard).join(&found.name);
            let source = Source {
                reader: &*reader,
                file: found.file,
                seed: found.header.seed(),
                generation: found.generation(),
            };
            let mut check = check_segment(segment, source).map_err(OpenError::io("read", &path))?;
            let totals = &mut verification.totals;
            totals.segments += 1;
            totals.batches += check.batches;
            totals.records += check.records;
            totals.payload_bytes += check.payload_bytes;
            totals.bytes += check.bytes;
            let spans = spans.get(&found.generation()).map_or(&[][..], Vec::as_slice);
            let lost = check.lost(spans, &self.examined.survey.recovered.index);
            // Nobody reads the batches of a sealed segment but for their records.
            check.is_harmless =
                lost.is_empty() && matches!(segment.contents, WalkedContents::Sealed(..));
            findings.extend(self.segment_findings(segment, &check, &lost));
            if check.is_complete() {
                let wrong = check
                    .check_footer(segment, source, segment_bytes)
                    .map_err(OpenError::io("read", &path))?;
                findings.extend(wrong.map(|(part, blocks)| Finding {
                    bytes: part.bytes,
                    remedy: Some(Remedy::Write {
                        file: self.path(&found.name),
                        writes: vec![
                            (blocks.body_offset, blocks.body[..blocks.body_length].to_vec()),
                            (blocks.last_offset, blocks.last[..].to_vec()),
                        ],
                        what: "write its index and footer again, from its batches",
                    }),
                    ..self.finding(Severity::Repairable, &found.name, part.what)
                }));
            }
            checks.insert(found.generation(), check);
        }
        self.findings.append(&mut findings);
        Ok(checks)
    }

    fn segment_findings(
        &self,
        segment: &WalkedSegment,
        check: &SegmentCheck,
        lost: &[StreamRange],
    ) -> Vec<Finding> {
        let name = &segment.found.name;
        let (severity, note) = match check.is_harmless {
            true => (
                Severity::Repairable,
                "; nothing that counts is in it, and it goes with its segment",
            ),
            false => (Severity::Corrupt, ""),
        };
        let bad = check.bad.iter().enumerate().map(|(index, part)| Finding {
            bytes: part.bytes.clone(),
            // What a segment lost cannot be told apart by its parts.
            lost: if index == 0 { lost.to_vec() } else { Vec::new() },
            ..self.finding(severity, name, format!("{}{note}", part.what))
        });
        let padding = check.padding.iter().map(|padding| Finding {
            bytes: padding.bytes.clone(),
            remedy: Some(Remedy::Write {
                file: self.path(name),
                writes: vec![(padding.block_offset, padding.block.clone())],
                what: "write the zeros behind the batch again",
            }),
            ..self.finding(Severity::Repairable, name, "the padding behind a batch is not zero")
        });
        bad.chain(padding).collect()
    }

    /// What recovery says, joined with what the batches showed.
    fn check_journal(&mut self) {
        let recovered = &self.examined.survey.recovered;
        let mut missing: Vec<_> = recovered
            .missing
            .iter()
            .flat_map(|(stream, range)| {
                let epochs = &recovered.index.streams[stream].epochs;
                StreamRange::split(*stream, epochs, range.clone())
            })
            .collect();
        let is_cut_off = |finding: &&mut Finding| {
            finding.severity == Severity::Corrupt
                && matches!(finding.remedy, Some(Remedy::Extend { .. }))
        };
        if let Some(cut_off) = self.findings.iter_mut().find(is_cut_off) {
            cut_off.lost.append(&mut missing);
        }
        let mut more = Vec::new();
        for Damage { file, bytes, what } in &recovered.damages {
            let path = self.path(file);
            let known = self.findings.iter_mut().find(|finding| {
                finding.remedy.is_none()
                    && finding.file == path
                    && finding.bytes.start < bytes.end
                    && bytes.start < finding.bytes.end
            });
            match known {
                Some(known) => {
                    known.severity = Severity::Corrupt;
                    known.what = format!("{}; {what}", known.what);
                    known.lost.append(&mut missing);
                }
                None => {
                    let name = if file == "journal" { "" } else { file };
                    let lost = std::mem::take(&mut missing);
                    let finding = self.finding(Severity::Corrupt, name, what.clone());
                    more.push(Finding { bytes: bytes.clone(), lost, ..finding });
                }
            }
        }
        if let Some((name, byte)) = &recovered.torn {
            let what = "an incomplete batch behind the last one; nobody had a receipt for it, and \
                        the next open cuts it off";
            let bytes = *byte..*byte + BLOCK_BYTES as u64;
            more.push(Finding { bytes, ..self.finding(Severity::Torn, name, what) });
        }
        self.findings.append(&mut more);
    }

    /// The two blocks of the anchor: one may never have been written, none may be damaged.
    fn check_anchor(&mut self) -> Result<(), OpenError> {
        let path = self.site.directory.shard_path(self.shard);
        let bytes = match read_file(&mut self.examined.disk, ANCHOR, 2 * BLOCK_BYTES) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            bytes => bytes.map_err(OpenError::io("read", path.join(ANCHOR)))?,
        };
        let mut valid = 0;
        let mut damaged = Vec::new();
        for index in 0..2 {
            let block = bytes.get(index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES).unwrap_or(&[]);
            let is_blank = !block.is_empty() && block.iter().all(|byte| *byte == 0);
            let is_ours = AnchorHeader::verify(block).is_ok_and(|anchor| {
                anchor.engine_id == self.site.directory.engine_id
                    && anchor.shard.get() == u32::from(self.shard)
            });
            valid += usize::from(is_ours);
            if !is_ours && !is_blank {
                damaged.push(index);
            }
        }
        let was_opened = !self.examined.survey.recovered.live.is_empty();
        if valid == 0 && was_opened {
            damaged = vec![0, 1];
        }
        let Some(anchor) = self.rebuilt_anchor().filter(|_| was_opened || !bytes.is_empty()) else {
            return Ok(());
        };
        if damaged.is_empty() {
            return Ok(());
        }
        let mut block = vec![0; BLOCK_BYTES];
        anchor.write(&mut block);
        let at = |index: &usize| (index * BLOCK_BYTES) as u64;
        let what = if valid == 0 {
            "the anchor is lost; the segments tell it"
        } else {
            "a copy of the anchor is damaged"
        };
        let mut finding = self.finding(Severity::Repairable, ANCHOR, what);
        finding.bytes = at(&damaged[0])..at(&damaged[damaged.len() - 1]) + BLOCK_BYTES as u64;
        finding.remedy = Some(Remedy::Write {
            file: self.path(ANCHOR),
            writes: damaged.iter().map(|index| (at(index), block.clone())).collect(),
            what: "write the damaged copy of the anchor again",
        });
        self.findings.push(finding);
        Ok(())
    }

    /// What the newest open knew: as the other copy says, or the segments of its incarnation.
    fn rebuilt_anchor(&self) -> Option<AnchorHeader> {
        let survey = &self.examined.survey;
        let newest = survey.plan.segments.iter().chain(&survey.plan.unused).map(|found| {
            let header = &found.header;
            (header.incarnation.get(), std::cmp::Reverse(found.generation()), found.number())
        });
        let told = newest.max().map(|(incarnation, generation, number)| {
            let id = self.site.directory.engine_id;
            AnchorHeader::new(id, u32::from(self.shard), incarnation, number, generation.0)
        });
        let told_incarnation = told.map_or(0, |anchor| anchor.incarnation.get());
        survey.anchor.filter(|anchor| anchor.incarnation.get() >= told_incarnation).or(told)
    }
}

/// Where a segment's good batches end, or the segment before it does.
pub(super) fn good_end(
    segments: &[WalkedSegment],
    checks: &HashMap<u64, SegmentCheck>,
) -> (Option<JournalEnd>, usize) {
    for (index, segment) in segments.iter().enumerate() {
        match checks.get(&segment.found.generation()) {
            Some(check) if !check.is_complete() && !check.is_harmless => {
                return (check.good_end, index);
            }
            _ => {}
        }
    }
    (segments.last().map(WalkedSegment::end), segments.len())
}
