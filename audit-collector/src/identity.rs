//! The gRPC service `Identity`: certificates for hosts that join, and new ones for those that have
//! one. The authority decides; here is only the wire.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use audit_pki::{Authority, AuthorityError, Certificate, authority::Chain, token::Secret};
use audit_proto::v1::{
    EnrollRequest, EnrollResponse, RotateRequest, RotateResponse, identity_server::Identity,
};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::access::Caller;

/// Anybody may knock; each costs a signature's check and some files.
const AT_ONCE: usize = 4;

#[derive(Clone)]
pub struct IdentityService {
    authority: PathBuf,
    slots: Arc<Semaphore>,
}

impl IdentityService {
    pub fn new(authority: PathBuf) -> Self {
        Self {
            authority,
            slots: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// The authority is opened for each, so that another process may issue and revoke meanwhile.
    async fn sign(
        &self,
        work: impl FnOnce(&Authority) -> Result<Chain, AuthorityError> + Send + 'static,
    ) -> Result<Vec<Vec<u8>>, Status> {
        let slot = self.slots.clone().acquire_owned().await;
        let slot = slot.map_err(|_| Status::unavailable("the collector is stopping"))?;
        let directory = self.authority.clone();
        let signed = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            work(&Authority::open(&directory)?)
        });
        let signed = signed
            .await
            .map_err(|_| Status::internal("signing stopped"))?;
        let chain = signed.map_err(|error| refusal(&error))?;
        if let Some(certificate) = chain.first().and_then(|der| Certificate::of_der(der).ok()) {
            let Certificate { peer, serial, .. } = &certificate;
            tracing::info!(%peer, serial, "certificate issued");
        }
        Ok(chain.iter().map(|one| one.to_vec()).collect())
    }
}

fn refusal(error: &AuthorityError) -> Status {
    use AuthorityError as E;
    let message = error.to_string();
    let status = match error {
        E::TokenUnknown
        | E::TokenUsed
        | E::TokenExpired
        | E::NameRevoked(_)
        | E::Revoked
        | E::Expired => Status::permission_denied(message),
        E::NameTaken(_) => Status::already_exists(message),
        E::Request(_) | E::Peer(_) | E::Host(_) => Status::invalid_argument(message),
        E::Exists(_)
        | E::Missing(_)
        | E::File(_)
        | E::Damaged { .. }
        | E::NothingToRevoke
        | E::Sign(_)
        | E::Certificate(_)
        | E::Random(_) => {
            tracing::error!(%error, "the authority cannot sign");
            // What is wrong with its files is nobody's business who only knocks.
            return Status::internal("the authority cannot sign; the collector's log says why");
        }
    };
    tracing::warn!(reason = status.message(), "no certificate issued");
    status
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn enroll(
        &self,
        request: Request<EnrollRequest>,
    ) -> Result<Response<EnrollResponse>, Status> {
        let EnrollRequest {
            secret,
            name,
            signing_request,
        } = request.into_inner();
        let secret = Secret::from_bytes(&secret)
            .ok_or_else(|| Status::invalid_argument("the secret of a join token has 16 bytes"))?;
        let certificates = self.sign(move |authority| {
            authority.enroll(&secret, &name, &signing_request, SystemTime::now())
        });
        Ok(Response::new(EnrollResponse {
            certificates: certificates.await?,
        }))
    }

    async fn rotate(
        &self,
        request: Request<RotateRequest>,
    ) -> Result<Response<RotateResponse>, Status> {
        let Caller::Certified(presented) = Caller::of(&request)? else {
            return Err(Status::unauthenticated("there is no certificate to rotate"));
        };
        let csr = request.into_inner().signing_request;
        let certificates =
            self.sign(move |authority| authority.rotate(&presented, &csr, SystemTime::now()));
        Ok(Response::new(RotateResponse {
            certificates: certificates.await?,
        }))
    }
}
