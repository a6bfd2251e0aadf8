//! Buckets against a server that misbehaves on demand: a real one, over loopback, written here. Against a real S3 server
//! they are tested from end to end (`tests/e2e/s3.rs`).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use rallrec_store::{Bucket, BucketError, BucketSettings, Object, SettingsError};
use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

const SECRET: &str = "wJalr-very-secret";
const TOKEN: &str = "FwoG-session-token";
const FOUND: &str = "ETag: \"v1\"\r\nLast-Modified: Mon, 02 Nov 2026 10:00:00 GMT\r\n";

/// Status, further headers, body, and how many bytes of the body are sent before the connection is cut.
#[derive(Clone)]
struct Reply(u16, String, Vec<u8>, usize);

fn reply(status: u16, headers: &str, body: impl Into<Vec<u8>>) -> Reply {
    Reply(status, headers.to_owned(), body.into(), usize::MAX)
}

/// A server whose replies are `script(number of the request, the request's head)`.
struct Fake {
    address: String,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn start(script: impl Fn(usize, &str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fake = Self { address: listener.local_addr().unwrap().to_string(), seen: Arc::default() };
        let seen = fake.seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away is its own business.
                let _ = answer(&stream.unwrap(), &script, &seen);
            }
        });
        fake
    }

    async fn bucket(&self) -> Bucket {
        let settings = settings(&[
            ("AWS_ENDPOINT_URL", &format!("http://{}", self.address)),
            ("AWS_ACCESS_KEY_ID", "AKIA1"),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_SESSION_TOKEN", TOKEN),
        ]);
        open(&settings).await.unwrap()
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn answer(
    mut stream: &TcpStream,
    script: &(dyn Fn(usize, &str) -> Reply + Send + Sync),
    seen: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut head = String::new();
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        head += &format!("{line}\n");
    }
    let number = {
        let mut seen = seen.lock().unwrap();
        seen.push(head.clone());
        seen.len() - 1
    };
    let Reply(status, headers, body, sent) = script(number, &head);
    write!(stream, "HTTP/1.1 {status} Status\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len())?;
    if !head.starts_with("HEAD") {
        stream.write_all(&body[..sent.min(body.len())])?;
    }
    stream.shutdown(std::net::Shutdown::Both)
}

fn settings(variables: &[(&str, &str)]) -> BucketSettings {
    BucketSettings::new(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

async fn open(settings: &BucketSettings) -> Result<Bucket, BucketError> {
    Bucket::open("models", settings, Duration::from_secs(5), Duration::from_secs(5)).await
}

#[tokio::test]
async fn a_range_is_asked_for_under_its_etag_and_a_cut_one_goes_on() {
    let body: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let whole = body.clone();
    let fake = Fake::start(move |number, head| {
        if head.starts_with("HEAD") {
            return Reply(200, FOUND.to_owned(), whole.clone(), 0);
        }
        let range = head.lines().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
        let range = range.unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
        let headers = format!("{FOUND}Content-Range: bytes {from}-{to}/{}\r\n", whole.len());
        Reply(206, headers, whole[from..=to].to_vec(), if number == 1 { 20_000 } else { usize::MAX })
    });
    let bucket = fake.bucket().await;
    let found = bucket.object("a/b c~%41.gguf").await.unwrap();
    assert_eq!((found.name(), found.bytes, found.etag.as_deref()), ("b c~%41.gguf", 100_000, Some("\"v1\"")));
    assert_eq!(bucket.read(&found, 1000..90_000).await.unwrap(), body[1000..90_000]);
    let seen = fake.seen();
    assert!(seen[0].starts_with("HEAD /models/a/b%20c~%2541.gguf "), "the key as it is: {}", seen[0]);
    assert_eq!(seen.len(), 3);
    for (head, range) in seen[1..].iter().zip(["bytes=1000-89999", "bytes=21000-89999"]) {
        let head = head.to_lowercase();
        assert!(head.contains("if-match: \"v1\"") && head.contains(range), "{head}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_an_object_is_told_apart() {
    let read = |status: u16, code: &'static str| async move {
        let xml = format!("<Error><Code>{code}</Code><Message>No.</Message><Token-0>{TOKEN}</Token-0></Error>");
        let fake = Fake::start(move |_, _| reply(status, "Content-Type: application/xml\r\n", xml.clone()));
        let object = Object { key: "a/b.gguf".into(), bytes: 10, etag: Some("\"v1\"".into()) };
        let error = fake.bucket().await.read(&object, 0..10).await.unwrap_err();
        (error.to_string(), error)
    };
    let (told, error) = read(412, "PreconditionFailed").await;
    assert!(matches!(error, BucketError::Replaced(_)) && told.starts_with("a/b.gguf was replaced"), "{told}");
    let (told, error) = read(404, "NoSuchKey").await;
    assert!(matches!(error, BucketError::NoObject(_)) && told == "there is no object a/b.gguf", "{told}");
    let (told, error) = read(404, "NoSuchBucket").await;
    assert!(matches!(error, BucketError::NoBucket(_)) && told == "there is no bucket models", "{told}");
    let (told, error) = read(403, "InvalidToken").await;
    assert!(matches!(error, BucketError::Denied(_)) && told.contains("InvalidToken: No."), "{told}");
    assert!(!told.contains(TOKEN) && !told.contains(SECRET), "{told}");
    let (told, _) = read(400, "AuthorizationHeaderMalformed").await;
    assert!(told.contains("AuthorizationHeaderMalformed: No."), "{told}");

    let fake = Fake::start(|_, _| reply(400, "", ""));
    let told = fake.bucket().await.object("a").await.unwrap_err().to_string();
    assert!(told.contains("400 Bad Request; look at AWS_REGION"), "{told}");
}

#[tokio::test]
async fn a_folder_is_what_lies_right_under_it() {
    let fake = Fake::start(|_, _| {
        let object = |key: &str, size: u32| {
            format!(
                "<Contents><Key>{key}</Key><Size>{size}</Size><ETag>&quot;v1&quot;</ETag><LastModified>2026-11-02T10:00:00.000Z</LastModified></Contents>"
            )
        };
        let listed = object("llm/", 0) + &object("llm/config.json", 7) + &object("llm/w.safetensors", 9);
        let body = format!(
            "<ListBucketResult><Name>models</Name><IsTruncated>false</IsTruncated>{listed}<CommonPrefixes><Prefix>llm/old/</Prefix></CommonPrefixes></ListBucketResult>"
        );
        reply(200, "Content-Type: application/xml\r\n", body)
    });
    let found = fake.bucket().await.folder("llm").await.unwrap();
    let found: Vec<_> = found.iter().map(|o| (o.name(), o.bytes, o.etag.as_deref())).collect();
    assert_eq!(found, [("config.json", 7, Some("\"v1\"")), ("w.safetensors", 9, Some("\"v1\""))]);
    assert!(fake.seen()[0].contains("prefix=llm%2F"), "{}", fake.seen()[0]);
}

#[tokio::test]
async fn a_bucket_needs_an_address_and_credentials() {
    for variable in [
        ("AWS_EC2_METADATA_DISABLED", "true"),
        // Outside of Amazon's cloud nobody answers there.
        ("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9"),
    ] {
        let error = open(&settings(&[variable])).await.unwrap_err();
        assert!(matches!(error, BucketError::Settings(SettingsError::Credentials(_))), "{error:?}");
        assert!(error.to_string().contains("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"), "{error}");
    }
    let error = open(&settings(&[("AWS_ACCESS_KEY_ID", "AKIA1")])).await.unwrap_err();
    assert!(
        matches!(&error, BucketError::Settings(SettingsError::Settings(why)) if why.contains("Secret")),
        "{error:?}"
    );
    let signed_by_nobody = ("AWS_SKIP_SIGNATURE", "true");
    let with_password = settings(&[("AWS_ENDPOINT_URL", "http://me:very-secret@host"), signed_by_nobody]);
    let error = open(&with_password).await.unwrap_err();
    assert!(!error.to_string().contains("very-secret"), "{error}");

    // A port that was free a moment ago refuses connections.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("http://{nobody}");
    let settings = settings(&[("AWS_ENDPOINT_URL", &endpoint), signed_by_nobody]);
    assert_eq!(settings.endpoint(), endpoint);
    let error = open(&settings).await.unwrap().object("a").await.unwrap_err();
    assert!(matches!(&error, BucketError::Failed(why) if why.contains("refused")), "{error:?}");
}

#[test]
fn settings_do_not_show_what_they_hold() {
    let settings = settings(&[("AWS_SECRET_ACCESS_KEY", SECRET), ("HOME", "/root"), ("AWS_REGION", "eu-north-1")]);
    let shown = format!("{settings:?}");
    assert!(shown.contains("AWS_SECRET_ACCESS_KEY") && !shown.contains(SECRET) && !shown.contains("HOME"), "{shown}");
    assert_eq!(settings.endpoint(), "https://s3.eu-north-1.amazonaws.com");
}
