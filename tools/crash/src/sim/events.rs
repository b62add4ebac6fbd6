//! What happens in runs, counted by name.

macro_rules! events {
    ($($name:ident $text:literal)*) => {
        /// Something that a run does or meets.
        #[derive(Copy, Clone, Eq, PartialEq, Debug)]
        pub enum Event { $(#[doc = $text] $name,)* }

        impl Event {
            /// All of them, in the order of the report.
            pub const ALL: &[Event] = &[$(Event::$name,)*];

            /// Whether a run of full size must show it; what only may happen is not asked for.
            pub fn must_happen(self) -> bool {
                !matches!(self, Event::RotsExcepted | Event::ClonesExcepted)
            }

            /// As it is printed.
            pub fn name(self) -> &'static str {
                match self { $(Event::$name => $text,)* }
            }
        }
    };
}

events! {
    CrashPoints "crash points"
    PowerCuts "crash points: power cuts"
    Kills "crash points: kills"
    CutsWhileOpening "crash points: power cuts while opening"
    KillsWhileOpening "crash points: kills while opening"
    CrashesTwiceWhileOpening "crash points: again while opening after a crash while opening"
    CutsAfterKills "crash points: power cuts at once after a kill"
    CutsAfterKillsAndOpens "crash points: power cuts in the first life after a kill"
    CrashesAfterTornTails "crash points: in the first life after a torn tail was cut"
    CrashesWhileClosing "crash points: while closing"
    Opens "opens"
    Looks "opens to read only"
    Closes "closes"
    TornTails "torn tails cut"
    Doubtful "unacknowledged commands that came back whole"
    Acknowledged "receipts"
    Refused "refusals"
    Trims "trims"
    Cuts "cuts that begin an epoch"
    EpochsSet "epochs that the node was given"
    EpochsClosed "epochs that the node gave up"
    EpochsBegun "epochs that began with a record"
    Histories "epoch tables that were the same in the next life"
    Skips "trims beyond the end"
    Anew "streams begun anew"
    AnewInside "streams begun anew inside of what they held"
    AnewOlder "streams begun anew in an older epoch"
    Foreign "frames from elsewhere"
    Rolls "rolls to the next segment"
    Recycled "segments used again"
    Moved "records moved"
    IdleSeals "idle seals"
    Poisoned "shards poisoned"
    Full "refusals and waits on a full disk"
    OutOfOrder "batch writes that overtook an earlier one"
    LoneWrites "writes that ended within a turn of the loop"
    Stalls "stalls with operations in flight"
    ErrorsWrite "EIO on a write"
    ErrorsSync "EIO on a flush"
    ErrorsSyncAll "EIO on a file's first sync"
    ErrorsRead "EIO on a read"
    ShortReads "short reads"
    ErrorsOther "EIO on open, allocate, remove or directory sync"
    NoSpace "ENOSPC on allocate"
    ShortWrites "short writes"
    TornWrites "writes torn by a power cut"
    ShornSectors "sectors left as garbage by a power cut"
    NamesLost "directory changes lost by a power cut"
    LengthsLost "lengths lost by a power cut"
    Rots "rot: runs"
    RotsHarmless "rot: harmless"
    RotsRefused "rot: named by opening"
    RotsRead "rot: named by reading"
    Mends "rot: mended, and there in the next life"
    MendsInterrupted "rot: lives that ended in the middle of mending"
    RotsExcepted "rot: newest batches gone, as the exception allows"
    LostWrites "astray: lost writes"
    MisdirectedWrites "astray: misdirected writes"
    AstrayHarmless "astray: harmless"
    AstrayRefused "astray: named by opening"
    AstrayRead "astray: named by reading"
    Readable "damaged: records read all the same"
    Unreadable "damaged: records not readable"
    Clones "clones: files of a clone put into its twin"
    ClonesRefused "clones: named by opening"
    ClonesWhole "clones: one history, whole"
    ClonesExcepted "clones: newest batches gone, as the exception allows"
    Insisted "given up: opens that insist on an earlier end"
    InsistedCrashes "given up: crash points meanwhile"
    InsistedRefused "given up: refused, since what was before is not whole either"
    InsistedTaken "given up: records up to that end, and no other"
    ShardGroups "shards: groups that die together"
    ShardCrashes "shards: crash points of a whole group"
}

/// A count of each event.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Counts([u64; Event::ALL.len()]);

impl Default for Counts {
    fn default() -> Self {
        Self([0; Event::ALL.len()])
    }
}

impl Counts {
    /// It happened so often.
    pub fn add(&mut self, event: Event, count: u64) {
        self.0[event as usize] += count;
    }

    /// It happened.
    pub fn note(&mut self, event: Event) {
        self.add(event, 1);
    }

    /// How often it happened.
    pub fn get(&self, event: Event) -> u64 {
        self.0[event as usize]
    }

    /// Takes over what another run has counted.
    pub fn merge(&mut self, other: &Counts) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}
