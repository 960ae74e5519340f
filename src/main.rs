//! `ppd`: parse, dispatch, print, exit; all of it stands in [`ppd::cmd`].

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // Candle's own element-wise pool would spin beside our workers, each of which already keeps a core busy.
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    ppd::cmd::main()
}
