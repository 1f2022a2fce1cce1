//! Wires and runs the command line; everything else is in the library.

fn main() -> std::process::ExitCode {
    scouter::cli::main()
}
