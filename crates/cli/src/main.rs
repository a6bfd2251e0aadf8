//! The `rallrec` program. All of it is in the library, so that it can be tested.

fn main() -> std::process::ExitCode {
    rallrec_cli::main()
}
