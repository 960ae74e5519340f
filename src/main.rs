//! `ppd`: parse, dispatch, print, exit; all of it stands in [`ppd::cmd`].

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // A reader that has seen enough (`ppd report | head`) ends the program, as it does others; it is no panic.
    #[cfg(unix)]
    // SAFETY: no other thread runs yet, and the default action needs no handler.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    // Candle's own element-wise pool would spin beside our workers, each of which already keeps a core busy.
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    ppd::cmd::main()
}
