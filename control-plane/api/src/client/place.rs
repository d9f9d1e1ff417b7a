//! Where a control plane is found, and by which names of the environment.

use std::env;
use std::path::{Path, PathBuf};

/// Names the control plane: `unix:DATA-DIR` for one of this machine, `https://HOST:PORT` for one
/// elsewhere.
pub const ADDRESS_VARIABLE: &str = "WEFT_CONTROL_PLANE";
/// Names the operator's file, for a control plane elsewhere.
pub const OPERATOR_VARIABLE: &str = "WEFT_OPERATOR";
/// The operator's socket in the data directory.
pub const ADMIN_SOCKET: &str = "admin.sock";
/// The workloads' socket in the data directory.
pub const JOIN_SOCKET: &str = "join.sock";
/// A user's data directory, below their home.
pub const USER_DATA_DIR: &str = ".local/state/weft";
/// An operator's file, below a user's configuration directory.
pub const OPERATOR_FILE: &str = "weft/operator.pem";

/// Where a control plane keeps its state unless it is told otherwise: for root `/var/lib/weft`,
/// else `weft` in the user's state directory.
pub fn default_data_dir() -> PathBuf {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/weft");
    }
    if let Some(dir) = set("XDG_STATE_HOME") {
        return Path::new(&dir).join("weft");
    }
    let home = set("HOME").map_or_else(env::temp_dir, PathBuf::from);
    home.join(USER_DATA_DIR)
}

/// Where an operator's file is looked for: where `WEFT_OPERATOR` says, else `weft/operator.pem` in
/// the user's configuration.
pub fn operator_file() -> PathBuf {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(named) = set(OPERATOR_VARIABLE) {
        return PathBuf::from(named);
    }
    let config = set("XDG_CONFIG_HOME").map(PathBuf::from);
    let home = || set("HOME").map_or_else(env::temp_dir, PathBuf::from);
    config
        .unwrap_or_else(|| home().join(".config"))
        .join(OPERATOR_FILE)
}
