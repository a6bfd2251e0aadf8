//! A cluster's store, read through its coordinators: what reads a store on this machine reads that one as well.

use super::connect::Cluster;
use crate::failure::Failure;
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path,
};
use rallrec_proto::api;
use rallrec_store::Store;
use std::{
    fmt,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};
use tonic::{Code, Status, Streaming};

/// What it is called in errors.
const NAME: &str = "a coordinator";

impl Cluster {
    /// Its store, for reading.
    pub fn store(&self) -> Store {
        Store::over(Arc::new(Remote { cluster: self.clone() }))
    }
}

#[derive(Debug)]
struct Remote {
    cluster: Cluster,
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAME)
    }
}

impl Remote {
    async fn opened(&self, request: api::ReadRequest) -> Result<(api::Object, Streaming<api::ReadReply>)> {
        let path = request.path.clone();
        let opened = self.cluster.read(|mut archive| {
            let request = request.clone();
            async move {
                // Not there is an answer, for whoever asks for it.
                match archive.read(request).await {
                    Err(status) if status.code() == Code::NotFound => Ok(None),
                    opened => Ok(Some(opened?.into_inner())),
                }
            }
        });
        let missing = || Error::NotFound { path: path.clone(), source: "there is no such object".into() };
        let mut replies = opened.await.map_err(failed)?.ok_or_else(missing)?;
        let first = replies.message().await.map_err(broke)?;
        Ok((first.and_then(|reply| reply.object).ok_or_else(missing)?, replies))
    }

    async fn listed(&self, prefix: Option<&Path>, shallow: bool) -> Result<Streaming<api::ListReply>> {
        let request = api::ListRequest { prefix: prefix.map(ToString::to_string).unwrap_or_default(), shallow };
        let listed = self.cluster.read(|mut archive| {
            let request = request.clone();
            async move { Ok(archive.list(request).await?.into_inner()) }
        });
        listed.await.map_err(failed)
    }
}

fn failed(failure: Failure) -> Error {
    Error::Generic { store: NAME, source: failure.to_string().into() }
}

fn broke(status: Status) -> Error {
    Error::Generic { store: NAME, source: status.message().to_owned().into() }
}

fn read_only<T>(operation: &str) -> Result<T> {
    Err(Error::NotImplemented { operation: operation.to_owned(), implementer: NAME.to_owned() })
}

fn meta(object: api::Object) -> Result<ObjectMeta> {
    let location = Path::parse(&object.path)?;
    let modified = UNIX_EPOCH + Duration::from_millis(object.modified_at_ms);
    Ok(ObjectMeta { location, last_modified: modified.into(), size: object.bytes, e_tag: None, version: None })
}

#[async_trait]
impl ObjectStore for Remote {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let mut request = api::ReadRequest { path: location.to_string(), head: options.head, ..Default::default() };
        match options.range {
            None => {}
            Some(GetRange::Bounded(range)) => (request.start, request.end) = (Some(range.start), Some(range.end)),
            Some(GetRange::Offset(start)) => request.start = Some(start),
            Some(GetRange::Suffix(bytes)) => {
                let (object, _) = self.opened(api::ReadRequest { head: true, ..request.clone() }).await?;
                request.start = Some(object.bytes.saturating_sub(bytes));
            }
        }
        let (start, end) = (request.start.unwrap_or(0), request.end);
        let (object, replies) = self.opened(request).await?;
        let meta = meta(object)?;
        let range = start..end.unwrap_or(meta.size).min(meta.size);
        let bytes = replies.map(|reply| reply.map(|reply| reply.bytes.into()).map_err(broke));
        let payload = GetResultPayload::Stream(bytes.boxed());
        Ok(GetResult { payload, meta, range, attributes: Attributes::default(), extensions: Default::default() })
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (cluster, prefix) = (self.cluster.clone(), prefix.cloned());
        let pages = async move {
            let pages = Remote { cluster }.listed(prefix.as_ref(), false).await?;
            let objects = pages.map_err(broke).map_ok(|page| futures::stream::iter(page.objects.into_iter().map(meta)));
            Ok::<_, Error>(objects.try_flatten())
        };
        futures::stream::once(pages).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let mut pages = self.listed(prefix, true).await?;
        let (mut objects, mut common_prefixes) = (Vec::new(), Vec::new());
        while let Some(page) = pages.message().await.map_err(broke)? {
            for object in page.objects {
                objects.push(meta(object)?);
            }
            for folder in page.folders {
                common_prefixes.push(Path::parse(folder)?);
            }
        }
        Ok(ListResult { objects, common_prefixes, extensions: Default::default() })
    }

    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        read_only("put")
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        read_only("put")
    }

    fn delete_stream(&self, _: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        futures::stream::once(async { read_only("delete") }).boxed()
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        read_only("copy")
    }
}
