//! gRPC on two unix sockets: the plugin itself, and its registration with the kubelet.

use crate::config::Config;
use crate::volumes::{VolumeError, Volumes};
use rackwright_wire::volume::DRIVER;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::{UnixListener, UnixStream};
use tonic::{Request, Response, Status};

/// Generated from `proto/csi.proto`.
pub mod csi_v1 {
    #![expect(
        missing_docs,
        clippy::pedantic,
        clippy::allow_attributes,
        clippy::clone_on_ref_ptr,
        reason = "generated code"
    )]
    tonic::include_proto!("csi.v1");
}

/// Generated from `proto/registration.proto`.
pub mod registration {
    #![expect(
        missing_docs,
        clippy::pedantic,
        clippy::allow_attributes,
        clippy::clone_on_ref_ptr,
        reason = "generated code"
    )]
    tonic::include_proto!("pluginregistration");
}

/// A socket that could not be opened, or a server on it that ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket could not be made.
    #[error("listen on {path}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// gRPC ended.
    #[error("serve gRPC")]
    Grpc(#[from] tonic::transport::Error),
}

/// Serves both sockets until one of them fails.
///
/// # Errors
/// When a socket cannot be made or its server ends.
pub async fn serve(config: &Config, volumes: Arc<Volumes>) -> Result<(), ServeError> {
    let socket = config.csi_socket();
    let plugin = Plugin { node: config.server.clone(), volumes };
    let endpoint = socket.to_string_lossy().into_owned();
    let csi = tonic::transport::Server::builder()
        .add_service(csi_v1::identity_server::IdentityServer::new(plugin.clone()))
        .add_service(csi_v1::node_server::NodeServer::new(plugin))
        .serve_with_incoming(incoming(listen(&socket)?));
    let registration = tonic::transport::Server::builder()
        .add_service(registration::registration_server::RegistrationServer::new(Introduction { endpoint }))
        .serve_with_incoming(incoming(listen(&config.registration_socket())?));
    tokio::try_join!(csi, registration)?;
    Ok(())
}

/// A socket left by a dead process is in the way of `bind`; ours alone lives at this path.
fn listen(path: &Path) -> Result<UnixListener, ServeError> {
    let failed = |cause| ServeError::Listen { path: path.to_owned(), cause };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    crate::spool::gone(std::fs::remove_file(path)).map_err(failed)?;
    UnixListener::bind(path).map_err(failed)
}

fn incoming(listener: UnixListener) -> impl futures::Stream<Item = std::io::Result<UnixStream>> {
    futures::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    })
}

#[derive(Clone)]
struct Plugin {
    node: String,
    volumes: Arc<Volumes>,
}

#[tonic::async_trait]
impl csi_v1::identity_server::Identity for Plugin {
    async fn get_plugin_info(
        &self,
        _: Request<csi_v1::GetPluginInfoRequest>,
    ) -> Result<Response<csi_v1::GetPluginInfoResponse>, Status> {
        let vendor_version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Response::new(csi_v1::GetPluginInfoResponse { name: DRIVER.to_owned(), vendor_version }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi_v1::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi_v1::GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(csi_v1::GetPluginCapabilitiesResponse {}))
    }

    async fn probe(
        &self,
        _: Request<csi_v1::ProbeRequest>,
    ) -> Result<Response<csi_v1::ProbeResponse>, Status> {
        Ok(Response::new(csi_v1::ProbeResponse {}))
    }
}

#[tonic::async_trait]
impl csi_v1::node_server::Node for Plugin {
    async fn node_publish_volume(
        &self,
        request: Request<csi_v1::NodePublishVolumeRequest>,
    ) -> Result<Response<csi_v1::NodePublishVolumeResponse>, Status> {
        let (asked, volumes) = (request.into_inner(), Arc::clone(&self.volumes));
        finished(async move {
            volumes.publish(&asked.volume_id, Path::new(&asked.target_path), &asked.volume_context).await
        })
        .await?;
        Ok(Response::new(csi_v1::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi_v1::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi_v1::NodeUnpublishVolumeResponse>, Status> {
        let (asked, volumes) = (request.into_inner(), Arc::clone(&self.volumes));
        finished(async move { volumes.unpublish(&asked.volume_id, Path::new(&asked.target_path)).await })
            .await?;
        Ok(Response::new(csi_v1::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi_v1::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi_v1::NodeGetCapabilitiesResponse>, Status> {
        Ok(Response::new(csi_v1::NodeGetCapabilitiesResponse {}))
    }

    async fn node_get_info(
        &self,
        _: Request<csi_v1::NodeGetInfoRequest>,
    ) -> Result<Response<csi_v1::NodeGetInfoResponse>, Status> {
        Ok(Response::new(csi_v1::NodeGetInfoResponse { node_id: self.node.clone() }))
    }
}

/// The kubelet gives a call up after two minutes and asks again. What was begun goes on meanwhile, or a large
/// checkpoint would be restored from its first byte for ever.
async fn finished(
    call: impl Future<Output = Result<(), VolumeError>> + Send + 'static,
) -> Result<(), Status> {
    match tokio::spawn(call).await {
        Ok(outcome) => outcome.map_err(|error| status(&error)),
        Err(cause) => Err(Status::internal(cause.to_string())),
    }
}

/// The kubelet shows the text in the pod's events: the whole chain, one line.
fn status(error: &VolumeError) -> Status {
    let mut text = format!("failed to {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    tracing::warn!(error = text, "volume request failed");
    match error {
        VolumeError::BadRequest { .. } => Status::invalid_argument(text),
        VolumeError::NotHere { .. } => Status::unavailable(text),
        VolumeError::Mount { .. }
        | VolumeError::File { .. }
        | VolumeError::Record { .. }
        | VolumeError::Restore(_)
        | VolumeError::Seal(_) => Status::internal(text),
    }
}

struct Introduction {
    endpoint: String,
}

#[tonic::async_trait]
impl registration::registration_server::Registration for Introduction {
    async fn get_info(
        &self,
        _: Request<registration::InfoRequest>,
    ) -> Result<Response<registration::PluginInfo>, Status> {
        Ok(Response::new(registration::PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: DRIVER.to_owned(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<registration::RegistrationStatus>,
    ) -> Result<Response<registration::RegistrationStatusResponse>, Status> {
        let told = request.into_inner();
        if told.plugin_registered {
            tracing::info!("the kubelet registered the plugin");
        } else {
            tracing::error!(error = told.error, "the kubelet refused the plugin");
        }
        Ok(Response::new(registration::RegistrationStatusResponse {}))
    }
}
