//! The map of original destinations, out of which the agent takes one for each connection that it accepts: what it holds, and that it
//! is gone, in one system call (bpf(2), `BPF_MAP_LOOKUP_AND_DELETE_ELEM`, for hash maps since Linux 5.14). aya has that for queues
//! only.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use ambit_ebpf_common::{Origin, OriginKey};
use aya::maps::{HashMap, Map, MapData, MapError};
use nix::libc;

use super::{super::CaptureError, failed, held::Operations};

/// Its name.
pub(super) const MAP: &str = "ORIGINS";

pub(super) struct Origins {
    map: HashMap<MapData, OriginKey, Origin>,
    /// The same map, for what aya does not do with it.
    descriptor: OwnedFd,
    operations: Operations,
}

impl Origins {
    pub(super) fn new(map: Map) -> Result<Self, CaptureError> {
        let (Map::HashMap(data) | Map::LruHashMap(data)) = &map else {
            return Err(failed(MAP)(MapError::InvalidMapType { map_type: 0 }));
        };
        let descriptor = data.fd().as_fd().try_clone_to_owned().map_err(|source| CaptureError::Host {
            step: "keep a descriptor of the eBPF map",
            path: MAP.into(),
            source,
        })?;
        let map = HashMap::try_from(map).map_err(failed(MAP))?;
        Ok(Self { map, descriptor, operations: Operations::default() })
    }

    /// Takes what is at `key`, if anything is.
    pub(super) fn take(&self, key: &OriginKey) -> Option<Origin> {
        self.operations.add(1);
        take(&self.descriptor, key).ok()
    }

    /// Whether anything is at `key`.
    pub(super) fn has(&self, key: &OriginKey) -> bool {
        self.operations.add(1);
        self.map.get(key, 0).is_ok()
    }

    pub(super) fn operations(&self) -> u64 {
        self.operations.count()
    }
}

/// What the command is told (`union bpf_attr`).
#[repr(C)]
struct Attributes {
    map: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `map` has keys and values of these types.
fn take(map: &OwnedFd, key: &OriginKey) -> io::Result<Origin> {
    const LOOKUP_AND_DELETE: libc::c_long = 21;
    let mut value = MaybeUninit::<Origin>::uninit();
    let attributes = Attributes {
        map: u32::try_from(map.as_raw_fd()).map_err(io::Error::other)?,
        _pad: 0,
        key: std::ptr::from_ref(key).expose_provenance() as u64,
        value: value.as_mut_ptr().expose_provenance() as u64,
        flags: 0,
    };
    // SAFETY: key, value and attributes outlive the call, and have the sizes that the map and the command have.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, LOOKUP_AND_DELETE, &raw const attributes, size_of::<Attributes>())
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has written all of it, and any bytes are an `Origin`.
    Ok(unsafe { value.assume_init() })
}
