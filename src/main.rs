//! `ppd`: parse, dispatch, print, exit; all of it stands in [`ppd::cmd`].

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    ppd::cmd::main()
}
