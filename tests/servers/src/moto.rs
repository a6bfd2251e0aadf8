//! moto's S3 server: keeps everything in memory, and honours conditional creation; under races too, as `moto.py` starts it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// The server, for `python -c`.
pub const MOTO: &str = include_str!("moto.py");

/// Who asks: moto wants to know it of private objects, and does not check the signature.
const SIGNED: &str = "Authorization: AWS4-HMAC-SHA256 Credential=AKIA1/20261123/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";

/// An S3 server with one bucket.
#[derive(Debug)]
pub struct Moto {
    process: Child,
    port: u16,
    bucket: String,
}

impl Moto {
    /// Starts one with an empty bucket. `None`, said on stderr, where it is not installed, unless `RALLREC_NO_SKIPS` is
    /// set.
    ///
    /// # Panics
    /// When it does not start, or is not installed and must be.
    pub fn start(bucket: &str) -> Option<Self> {
        let python = moto_python()?;
        let mut process = Command::new(&python)
            // Port 0: it chooses one itself, as one that was free a moment ago may not be any more.
            .args(["-c", MOTO, "-H", "127.0.0.1", "-p", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}; run tests/run, which installs it", python.display()));
        let mut log = BufReader::new(process.stderr.take().expect("its log is piped"));
        let (mut said, mut port) = (String::new(), None);
        while port.is_none() {
            let read = log.read_line(&mut said).expect("its log can be read");
            assert!(read > 0, "moto ended: {said}");
            port = said.split_once("http://127.0.0.1:").and_then(|(_, rest)| rest.trim_end().parse().ok());
        }
        // Somebody must go on reading, or the server stops when the pipe is full.
        std::thread::spawn(move || log.read_to_end(&mut Vec::new()));
        let moto = Self { process, port: port.expect("it was found"), bucket: bucket.to_owned() };
        moto.request("PUT", "", b"");
        Some(moto)
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Puts an object into the bucket, past every client.
    ///
    /// # Panics
    /// When the server does not take it.
    pub fn put(&self, key: &str, bytes: &[u8]) {
        self.request("PUT", &format!("/{key}"), bytes);
    }

    /// Sends a request for something in the bucket; gives the body of the answer.
    ///
    /// # Panics
    /// When the server does not answer well.
    pub fn request(&self, method: &str, path: &str, body: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("moto listens");
        let head = format!(
            "{method} /{}{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{SIGNED}\r\nConnection: close\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
            self.bucket,
            body.len()
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).expect("moto reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("moto answers");
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("an answer has a head");
        let head = String::from_utf8_lossy(&answer[..end]);
        assert!(head.split(' ').nth(1).is_some_and(|status| status.starts_with('2')), "{method} {path}: {head}");
        answer.split_off(end + 4)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The Python that has moto: the one that a variable names, or the one in `target/`. `None`, said on stderr, where there
/// is none, unless `RALLREC_NO_SKIPS` is set.
///
/// # Panics
/// When there is none and must be.
#[expect(clippy::print_stderr, reason = "a test that is not run should say so")]
pub fn moto_python() -> Option<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/moto/bin/python");
    let found = std::env::var_os("RALLREC_MOTO_PYTHON").map(PathBuf::from);
    let found = found.or_else(|| Some(installed).filter(|p| p.exists()));
    if found.is_none() {
        let told = "skipped: moto is not here; tests/run installs it, or RALLREC_MOTO_PYTHON names a Python with it";
        assert!(std::env::var_os("RALLREC_NO_SKIPS").is_none(), "{told}");
        eprintln!("{told}");
    }
    found
}
