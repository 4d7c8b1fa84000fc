//! Who may call what? One table, asked before each call of each listener.
//!
//! Invariants: a call without a row is refused, so a new one is closed until somebody decides; who
//! calls is a fact of the connection ([`Caller`]), never of the request; an agent delivers the
//! record of the host that its certificate names and of no other, and nobody else's certificate
//! delivers at all: not even an administrator can write another host's record.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use audit_pki::{Certificate, Role};
use audit_proto::v1::Hello;
use futures::future::{Either, Ready, ready};
use tonic::{Status, body::Body, codegen::http};

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub enum Caller {
    /// Over the unix socket; `trusted` is root, the collector's own user, or a configured one.
    Local { uid: u32, trusted: bool },
    /// Over TCP without TLS: whoever reaches the address.
    Open,
    /// Over TLS without a certificate: somebody who has a join token, or nothing.
    Unknown,
    /// Over TLS, with a certificate that was verified.
    Certified(Arc<Certificate>),
}

/// What a call asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// A join token, which is in the request.
    Nothing,
    Certificate,
    Agent,
    Reader,
    Analyst,
}

const TABLE: [(&str, Needs); 11] = [
    ("/audit.v1.Ingest/Deliver", Needs::Agent),
    ("/audit.v1.Collector/Tail", Needs::Reader),
    ("/audit.v1.Collector/Alerts", Needs::Reader),
    ("/audit.v1.Collector/Status", Needs::Reader),
    ("/audit.v1.Collector/Query", Needs::Analyst),
    ("/audit.v1.Ledger/Export", Needs::Analyst),
    ("/audit.v1.Identity/Enroll", Needs::Nothing),
    ("/audit.v1.Identity/Rotate", Needs::Certificate),
    ("/grpc.health.v1.Health/Check", Needs::Reader),
    ("/grpc.health.v1.Health/Watch", Needs::Reader),
    (
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        Needs::Reader,
    ),
];

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local { uid, .. } => write!(f, "uid {uid}"),
            Self::Open => f.write_str("an unauthenticated connection"),
            Self::Unknown => f.write_str("a connection without a certificate"),
            Self::Certified(certificate) => certificate.peer.fmt(f),
        }
    }
}

impl Caller {
    /// Of a request that passed [`Authorize`].
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Self>().cloned();
        caller.ok_or_else(|| Status::internal("nobody knows who calls"))
    }

    /// Whether it may call the RPC of this path.
    fn authorize(&self, path: &str) -> Result<(), Status> {
        let Some((_, needs)) = TABLE.iter().find(|(row, _)| *row == path) else {
            return Err(Status::unimplemented(format!(
                "{path}: this collector has no such call, or no rule for who may use it"
            )));
        };
        if self.meets(*needs) {
            return Ok(());
        }
        let needed = match needs {
            Needs::Nothing => return Ok(()),
            Needs::Certificate => "a certificate, over TLS",
            Needs::Agent => "a certificate of role agent",
            Needs::Reader => "a certificate of role reader, analyst or admin",
            Needs::Analyst => "a certificate of role analyst or admin",
        };
        let message = match self {
            Self::Local { uid, .. } => format!(
                "{path}: over this socket that is for root and for the collector's own user, and uid \
                 {uid} is neither; `listen.unix_admin_uids` may name it"
            ),
            _ => format!("{path} needs {needed}, and this is {self}"),
        };
        Err(match self {
            Self::Unknown => Status::unauthenticated(message),
            _ => Status::permission_denied(message),
        })
    }

    fn meets(&self, needs: Needs) -> bool {
        let role = match self {
            Self::Local { trusted: true, .. } | Self::Open => return needs != Needs::Certificate,
            Self::Local { trusted: false, .. } => Some(Role::Analyst),
            Self::Unknown => None,
            Self::Certified(certificate) => Some(certificate.peer.role()),
        };
        match needs {
            Needs::Nothing => true,
            Needs::Certificate => matches!(self, Self::Certified(_)),
            Needs::Agent => role == Some(Role::Agent),
            Needs::Reader => matches!(role, Some(Role::Reader | Role::Analyst | Role::Admin)),
            Needs::Analyst => matches!(role, Some(Role::Analyst | Role::Admin)),
        }
    }

    /// Whether it may deliver the stream that it says hello with.
    pub fn authorize_stream(&self, hello: &Hello) -> Result<(), Status> {
        match self {
            Self::Certified(certificate) if certificate.peer.name() != hello.host_id => {
                tracing::warn!(caller = %self, host_id = hello.host_id, "refused: another host's stream");
                Err(Status::permission_denied(format!(
                    "{self} delivers the record of its own host and not of {}; its certificate was \
                     issued for another host, or another host's is used",
                    hello.host_id
                )))
            }
            _ => Ok(()),
        }
    }
}

/// Puts the table in front of all services.
#[derive(Debug, Clone, Copy)]
pub struct Authorize;

impl<S> tower::Layer<S> for Authorize {
    type Service = Authorized<S>;

    fn layer(&self, inner: S) -> Authorized<S> {
        Authorized(inner)
    }
}

#[derive(Debug, Clone)]
pub struct Authorized<S>(S);

type Response = http::Response<Body>;

impl<S, B> tower::Service<http::Request<B>> for Authorized<S>
where
    S: tower::Service<http::Request<B>, Response = Response>,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let path = request.uri().path();
        let refused = match request.extensions().get::<Caller>() {
            Some(caller) => caller.authorize(path).inspect_err(|status| {
                tracing::debug!(%caller, path, reason = status.message(), "call refused");
            }),
            None => Err(Status::internal("nobody knows who calls")),
        };
        match refused {
            Ok(()) => Either::Left(self.0.call(request)),
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use audit_proto::{FILE_DESCRIPTOR_SET, Message as _};
    use prost_types::FileDescriptorSet;

    use super::*;

    fn calls_of(descriptors: &[u8]) -> Vec<String> {
        let set = FileDescriptorSet::decode(descriptors).expect("descriptors");
        let mut calls = Vec::new();
        for file in set.file {
            for service in &file.service {
                for method in &service.method {
                    let (service, method) = (service.name(), method.name());
                    calls.push(format!("/{}.{service}/{method}", file.package()));
                }
            }
        }
        calls
    }

    #[test]
    fn every_call_that_is_served_has_a_row() {
        let sets = [
            FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        ];
        for call in sets.into_iter().flat_map(calls_of) {
            assert!(
                TABLE.iter().any(|(row, _)| *row == call),
                "nobody may call it; add to TABLE who may: (\"{call}\", Needs::...)"
            );
        }
    }

    #[test]
    fn a_call_without_a_row_is_refused_even_to_root() {
        let root = Caller::Local {
            uid: 0,
            trusted: true,
        };
        let status = root.authorize("/audit.v1.Collector/Drop").expect_err("no");
        assert_eq!(status.code(), tonic::Code::Unimplemented);
        root.authorize("/audit.v1.Ingest/Deliver").expect("has one");
    }

    #[test]
    fn a_member_of_the_sockets_group_reads_and_asks_and_does_not_write() {
        let member = Caller::Local {
            uid: 1000,
            trusted: false,
        };
        for (path, needs) in TABLE {
            let may = matches!(needs, Needs::Nothing | Needs::Reader | Needs::Analyst);
            assert_eq!(member.authorize(path).is_ok(), may, "{path}");
        }
        let status = member.authorize("/audit.v1.Ingest/Deliver");
        let message = status.expect_err("refused").message().to_owned();
        assert!(message.contains("listen.unix_admin_uids"), "{message}");
    }
}
