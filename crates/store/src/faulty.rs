//! For tests: a store in memory of which single reads and writes fail, as on a bad disk.

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};
use std::{fmt, io};

type Failing = Box<dyn Fn(&Path) -> Option<io::Error> + Send + Sync>;

/// See the module.
pub(crate) struct Faulty {
    whole: InMemory,
    get: Failing,
    put: Failing,
}

impl Faulty {
    /// What `get` and `put` say of an object is how reading and writing it fails.
    pub(crate) fn new(
        get: impl Fn(&Path) -> Option<io::Error> + Send + Sync + 'static,
        put: impl Fn(&Path) -> Option<io::Error> + Send + Sync + 'static,
    ) -> Self {
        Self { whole: InMemory::new(), get: Box::new(get), put: Box::new(put) }
    }
}

fn or_fail(failure: Option<io::Error>) -> Result<()> {
    failure.map_or(Ok(()), |e| Err(Error::Generic { store: "disk", source: Box::new(e) }))
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        or_fail((self.get)(location))?;
        self.whole.get_opts(location, options).await
    }

    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        or_fail((self.put)(location))?;
        self.whole.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        or_fail((self.put)(location))?;
        self.whole.put_multipart_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.whole.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.whole.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.whole.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.whole.copy_opts(from, to, options).await
    }
}
