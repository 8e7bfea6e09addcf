//! `ambit`, the node-level ambient tunnel daemon.
//!
//! The program calls [`cli::main`]. Beside it only what reads bytes of strangers is public, for the fuzz targets; no part of
//! it is a stable interface.

mod admin;
mod app;
mod authz;
mod ca;
mod capture;
pub mod cli;
mod clients;
mod cluster;
mod cni;
mod config;
mod diagnosis;
mod discovery;
mod dns;
mod error;
mod files;
pub mod fuzzing;
mod http;
pub mod identity;
mod instance;
mod jwt;
mod proxy;
mod reports;
mod telemetry;
mod tunnel;
mod web_pki;
