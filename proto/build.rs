//! Compiles the `.proto` files without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let messages = protox::compile(["rallrec/v1/task.proto", "rallrec/v1/fleet.proto"], ["proto"])?;
    // Sorted maps: equal messages have equal bytes.
    prost_build::Config::new().btree_map(["."]).compile_fds(messages)?;
    let services = ["rallrec/api/v1/coordinator.proto", "rallrec/api/v1/archive.proto"];
    tonic_prost_build::configure().compile_fds(protox::compile(services, ["proto"])?)?;
    Ok(())
}
