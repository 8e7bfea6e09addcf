//! Until telemetry and the other rooms have these.
use ambit_core::reason::{Reason, Refusal};
use http::{StatusCode, request::Parts};

pub(crate) const MALFORMED: Reason = Reason::ProtocolError;
#[derive(Debug)]
pub(crate) struct Request;
impl Request {
    pub(crate) fn admitted(&self) {}
    pub(crate) fn refused(self, _: &Refusal, _: StatusCode) {}
    pub(crate) fn finish(self, _: &RequestEnd) {}
}
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RequestEnd {
    pub(crate) status: Option<StatusCode>,
    pub(crate) grpc_status: Option<i64>,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    pub(crate) request_messages: u64,
    pub(crate) response_messages: u64,
    pub(crate) flag: ResponseFlag,
}
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ResponseFlag {
    #[default]
    None,
    DownstreamClosed,
    UpstreamClosed,
    UpstreamFailure,
    UpstreamProtocolError,
}
#[derive(Debug, Default)]
pub(crate) struct GrpcMessages;
impl GrpcMessages {
    pub(crate) fn see(&mut self, _: &[u8]) {}
    pub(crate) fn count(&self) -> u64 {
        0
    }
}
pub(crate) trait ConnectionExt {
    fn request(&self, _: &mut Parts) -> Request {
        Request
    }
    fn malformed(&self, _: &Refusal) {}
}
impl ConnectionExt for crate::telemetry::Connection {}
