//! The program `ambit`; everything is in the library.

fn main() -> std::process::ExitCode {
    ambit::cli::main()
}
