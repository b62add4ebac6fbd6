//! The offline tools on directories that are whole, killed, or damaged in every way of the list:
//! what each kind of rot is called, what a repair does, and that nothing acknowledged is lost
//! without being named.

mod offline {
    mod acknowledged;
    mod flipped;
    mod killed;
    mod lost_shard;
    mod mended;
    mod refused;
    mod running;
    mod setup;
    mod short;
    mod whole;
}
