//! Who may speak to a coordinator: TLS, and tokens.
//!
//! Whoever has a token may do everything; there are no roles. Kept are only hashes of tokens, and they are compared in a
//! time that does not tell how much of a guess was right. No token is in an error, in a log or in `Debug`.

use sha2::{Digest, Sha256};
use std::{fmt, sync::Arc};
use tonic::{
    Request, Status,
    service::Interceptor,
    transport::{Identity, ServerTlsConfig},
};

/// Shortest token that is accepted, in characters: 16 random ones cannot be guessed over a network.
const MIN_TOKEN: usize = 16;

/// A server's certificate and its key.
#[derive(Clone)]
pub struct Tls {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Tls {
    /// Of PEM files: the certificate with its chain, and its private key.
    pub fn new(cert: Vec<u8>, key: Vec<u8>) -> Self {
        Self { cert, key }
    }

    pub(super) fn config(&self) -> ServerTlsConfig {
        ServerTlsConfig::new().identity(Identity::from_pem(&self.cert, &self.key))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(a certificate and its key)")
    }
}

/// Tokens that are accepted. None: nobody is asked for one.
#[derive(Clone, Default)]
pub struct Tokens(Arc<[[u8; 32]]>);

/// A text that holds no tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokensError {
    /// It is empty.
    #[error("there is no token in it; write one a line, for example the output of `openssl rand -hex 32`")]
    None,
    /// One is too short, or is no word.
    #[error(
        "line {line} is no token: {MIN_TOKEN} or more visible ASCII characters; take the output of `openssl rand -hex 32`"
    )]
    Line {
        /// Which.
        line: usize,
    },
}

impl Tokens {
    /// Reads tokens, one a line, so that a new one can be given out before the old one goes. Lines with `#` are comments.
    ///
    /// # Errors
    /// [`TokensError`].
    pub fn read(text: &str) -> Result<Self, TokensError> {
        let mut tokens = Vec::new();
        for (i, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if line.len() < MIN_TOKEN || !line.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(TokensError::Line { line: i + 1 });
            }
            tokens.push(Sha256::digest(line).into());
        }
        if tokens.is_empty() { Err(TokensError::None) } else { Ok(Self(tokens.into())) }
    }

    /// Whether a token is asked for.
    pub fn are_asked(&self) -> bool {
        !self.0.is_empty()
    }

    fn accept(&self, token: &[u8]) -> bool {
        let asked: [u8; 32] = Sha256::digest(token).into();
        // Every byte of every token is looked at, whatever the outcome.
        let same = |known: &[u8; 32]| known.iter().zip(&asked).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0;
        self.0.iter().fold(false, |found, known| found | same(known))
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({} of them)", self.0.len())
    }
}

impl Interceptor for Tokens {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        if !self.are_asked() {
            return Ok(request);
        }
        let header = request.metadata().get("authorization").map(|value| value.as_encoded_bytes());
        match header.and_then(|header| header.strip_prefix(b"Bearer ")) {
            Some(token) if self.accept(token) => Ok(request),
            Some(_) => Err(Status::unauthenticated("the coordinator does not know this token")),
            None => Err(Status::unauthenticated("the coordinator asks for a token")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0123456789abcdef";
    const B: &str = "fedcba9876543210-longer";

    fn asked(tokens: &Tokens, header: Option<&str>) -> Result<(), String> {
        let mut request = Request::new(());
        if let Some(header) = header {
            request.metadata_mut().insert("authorization", header.parse().unwrap());
        }
        tokens.clone().call(request).map(drop).map_err(|status| status.message().to_owned())
    }

    #[test]
    fn each_of_the_tokens_is_accepted_and_nothing_else() {
        let tokens = Tokens::read(&format!("# old\n{A}\n\n  {B}  \n")).unwrap();
        for good in [A, B] {
            assert_eq!(asked(&tokens, Some(&format!("Bearer {good}"))), Ok(()));
        }
        for bad in [&A[1..], "", "# old", &format!("{A}\u{20}")] {
            let refused = asked(&tokens, Some(&format!("Bearer {bad}"))).unwrap_err();
            assert_eq!(refused, "the coordinator does not know this token");
        }
        assert_eq!(asked(&tokens, Some(&format!("Basic {A}"))).unwrap_err(), "the coordinator asks for a token");
        assert_eq!(asked(&tokens, None).unwrap_err(), "the coordinator asks for a token");
        assert_eq!(asked(&Tokens::default(), None), Ok(()));
    }

    #[test]
    fn what_is_no_token_is_told_without_telling_it() {
        assert_eq!(Tokens::read("\n# nothing\n").unwrap_err(), TokensError::None);
        let short = Tokens::read(&format!("{A}\nhunter2\n")).unwrap_err();
        assert_eq!(short, TokensError::Line { line: 2 });
        assert!(!short.to_string().contains("hunter2"));
        assert!(!format!("{:?}", Tokens::read(A).unwrap()).contains(A));
        assert!(!format!("{:?}", Tls::new(b"cert".to_vec(), b"private".to_vec())).contains("private"));
    }
}
