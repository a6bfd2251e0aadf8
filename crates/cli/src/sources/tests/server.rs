//! A small real HTTP server on loopback that can be told to misbehave, one connection at a time.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

/// What the server does with one request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Manner {
    /// Answers well, ranges too.
    Serve,
    /// Sends this many bytes of the body, then closes the connection.
    CutAfter(usize),
    /// Answers with the whole file although a range was asked for.
    IgnoreRange,
    /// Answers with this status and no body.
    Status(u16),
}

pub(super) struct Server {
    address: String,
    stop: Arc<AtomicBool>,
    ranges: Arc<Mutex<Vec<Option<u64>>>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `body` at every path; the n-th request meets the n-th manner, later ones the last.
    pub(super) fn start(body: Vec<u8>, manners: &[Manner]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let address = listener.local_addr().unwrap().to_string();
        let stop = Arc::new(AtomicBool::new(false));
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let mut manners: VecDeque<Manner> = manners.to_vec().into();
        let (stopped, seen) = (Arc::clone(&stop), Arc::clone(&ranges));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let manner = if manners.len() > 1 { manners.pop_front() } else { manners.front().copied() };
                // A client that goes away in mid-answer is part of the tests.
                let _ = answer(stream.unwrap(), &body, manner.unwrap_or(Manner::Serve), &seen);
            }
        });
        Self { address, stop, ranges, thread: Some(thread) }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// First byte asked for by each request so far; `None` where no range was asked for.
    pub(super) fn ranges(&self) -> Vec<Option<u64>> {
        self.ranges.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the accept loop, which then sees the flag.
        drop(TcpStream::connect(&self.address));
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server's thread does not panic");
        }
    }
}

fn answer(mut stream: TcpStream, body: &[u8], manner: Manner, ranges: &Mutex<Vec<Option<u64>>>) -> std::io::Result<()> {
    let mut range = None;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?.to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(from) = line.strip_prefix("range: bytes=") {
            range = from.trim_end_matches('-').parse::<u64>().ok();
        }
    }
    ranges.lock().unwrap().push(range);
    let start = match (manner, range) {
        (Manner::Status(status), _) => {
            return write!(stream, "HTTP/1.1 {status} Nope\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        (Manner::IgnoreRange, _) | (_, None) => None,
        (_, Some(start)) => Some(start as usize),
    };
    let rest = &body[start.unwrap_or(0).min(body.len())..];
    match start {
        Some(_) if rest.is_empty() => {
            return write!(stream, "HTTP/1.1 416 Range\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        Some(start) => write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{}/{}\r\n",
            body.len() - 1,
            body.len()
        )?,
        None => write!(stream, "HTTP/1.1 200 OK\r\n")?,
    }
    write!(stream, "Content-Length: {}\r\nConnection: close\r\n\r\n", rest.len())?;
    let send = if let Manner::CutAfter(n) = manner { n.min(rest.len()) } else { rest.len() };
    stream.write_all(&rest[..send])?;
    stream.flush()
}
