//! Texts and lists with rules.

use std::fmt;
use std::path::PathBuf;
use std::slice;

use serde::{Deserialize, Serialize};

use super::{DriveConfig, MAX_DRIVES};
use crate::boot::cmdline;

/// Version of the configuration format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Version(u32);

impl Version {
    /// What this program writes, and the newest that it reads.
    pub const CURRENT: Self = Self(1);
}

impl Default for Version {
    fn default() -> Self {
        Self::CURRENT
    }
}

impl TryFrom<u32> for Version {
    type Error = String;

    fn try_from(version: u32) -> Result<Self, String> {
        match version {
            1 => Ok(Self(version)),
            0 => Err("version must be 1".to_owned()),
            newer => Err(format!(
                "version {newer} is newer than this program, which reads version 1: \
                 use the program that wrote it"
            )),
        }
    }
}

impl From<Version> for u32 {
    fn from(version: Version) -> u32 {
        version.0
    }
}

/// A kernel command line that fits, with room for the devices' part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BootArgs(String);

impl BootArgs {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for BootArgs {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if let Some(position) = text.bytes().position(|byte| !(b' '..=b'~').contains(&byte)) {
            return Err(format!(
                "boot_args may only contain printable ASCII, but byte {position} is {:#04x}",
                text.as_bytes()[position]
            ));
        }
        if text.len() > cmdline::MAX_USER_LENGTH {
            return Err(format!(
                "boot_args has {} bytes, but {} is the most that leaves room for the devices",
                text.len(),
                cmdline::MAX_USER_LENGTH
            ));
        }
        Ok(Self(text))
    }
}

impl From<BootArgs> for String {
    fn from(args: BootArgs) -> String {
        args.0
    }
}

/// A guest's vsock context identifier: not one of the reserved ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct GuestCid(u32);

impl GuestCid {
    /// The identifier that every guest may have: guests are apart, each has a
    /// device of its own on a Unix socket of its own.
    pub const DEFAULT: Self = Self(3);

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u64> for GuestCid {
    type Error = String;

    fn try_from(cid: u64) -> Result<Self, String> {
        match u32::try_from(cid) {
            // 0 hypervisor, 1 local, 2 host, all ones "any" (virtio 1.3, 5.10.4).
            Ok(cid) if cid > 2 && cid != u32::MAX => Ok(Self(cid)),
            _ => Err(format!("guest_cid must be 3 to 4294967294, not {cid}")),
        }
    }
}

impl From<GuestCid> for u64 {
    fn from(cid: GuestCid) -> u64 {
        u64::from(cid.0)
    }
}

/// Proves that a hello comes from the guest that was started; 32 hexadecimal
/// digits in text.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BootNonce([u8; 16]);

impl BootNonce {
    /// A nonce of these bytes.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for BootNonce {
    /// A secret is not printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BootNonce(..)")
    }
}

impl TryFrom<String> for BootNonce {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || {
            format!(
                "boot_nonce must be 32 hexadecimal digits, not {} bytes of text",
                text.len()
            )
        };
        if text.len() != 32 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut nonce = [0; 16];
        for (byte, digits) in nonce.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digit = |d: u8| char::from(d).to_digit(16).ok_or_else(wrong);
            *byte = (digit(digits[0])? << 4 | digit(digits[1])?) as u8;
        }
        Ok(Self(nonce))
    }
}

impl From<BootNonce> for String {
    fn from(nonce: BootNonce) -> String {
        nonce
            .0
            .iter()
            .fold(String::with_capacity(32), |mut text, byte| {
                for digit in [byte >> 4, byte & 15] {
                    text.extend(char::from_digit(u32::from(digit), 16));
                }
                text
            })
    }
}

/// Block devices with distinct names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<DriveConfig>", into = "Vec<DriveConfig>")]
pub struct Drives(Vec<DriveConfig>);

impl Drives {
    /// The drives in order.
    pub fn iter(&self) -> slice::Iter<'_, DriveConfig> {
        self.0.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> IntoIterator for &'a Drives {
    type Item = &'a DriveConfig;
    type IntoIter = slice::Iter<'a, DriveConfig>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl TryFrom<Vec<DriveConfig>> for Drives {
    type Error = String;

    fn try_from(drives: Vec<DriveConfig>) -> Result<Self, String> {
        if drives.len() > MAX_DRIVES {
            return Err(format!(
                "drives has {} entries, but {MAX_DRIVES} is the most",
                drives.len()
            ));
        }
        for (index, drive) in drives.iter().enumerate() {
            let id = &drive.drive_id;
            // The identifier is the device's serial number: 20 bytes (virtio 1.3, 5.2.6).
            if !(1..=20).contains(&id.len()) || !id.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(format!(
                    "drives[{index}].drive_id must be 1 to 20 printable ASCII characters, not {id:?}"
                ));
            }
            if drive.path_on_host.as_os_str().is_empty() {
                return Err(format!("drives[{index}].path_on_host is empty"));
            }
            if drives[..index].iter().any(|other| other.drive_id == *id) {
                return Err(format!("drives[{index}].drive_id {id:?} is used twice"));
            }
        }
        Ok(Self(drives))
    }
}

impl From<Drives> for Vec<DriveConfig> {
    fn from(drives: Drives) -> Self {
        drives.0
    }
}

/// Initramfs segments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<PathBuf>", into = "Vec<PathBuf>")]
pub struct InitrdPaths(Vec<PathBuf>);

impl InitrdPaths {
    /// The files in order.
    pub fn as_slice(&self) -> &[PathBuf] {
        &self.0
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<Vec<PathBuf>> for InitrdPaths {
    type Error = String;

    fn try_from(paths: Vec<PathBuf>) -> Result<Self, String> {
        match paths.iter().position(|path| path.as_os_str().is_empty()) {
            Some(index) => Err(format!("initrd_paths[{index}] is empty")),
            None => Ok(Self(paths)),
        }
    }
}

impl From<InitrdPaths> for Vec<PathBuf> {
    fn from(paths: InitrdPaths) -> Self {
        paths.0
    }
}
