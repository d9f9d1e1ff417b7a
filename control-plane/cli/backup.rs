//! `weft backup` and `weft restore`: a copy of all that a control plane must not lose.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use weft_api::client::{Client, default_data_dir};
use weft_control_plane::backup::{Summary, restore as restore_backup, verify};

use crate::output::{CliError, moment, note};

/// Writes a backup of the control plane to a file (0600), while the control plane runs: resources
/// with their history, tokens, instances, operators, revocations, registrations, virtual addresses,
/// and the certificate authority. Whoever reads the file can issue identities of the mesh.
///
/// Examples:
///   weft backup weft-2026-01-31.backup
///   weft backup /var/backups/weft.backup --force
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct BackupArgs {
    /// The file to write
    file: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

/// Makes the data directory of a control plane of a backup. The directory must be empty or not
/// exist; no control plane runs on it yet.
///
/// What happened after the backup is not in it: certificates and operators that were revoked since
/// are valid again, and join tokens that were redeemed since can be redeemed again. Revoke them
/// again before sidecars can reach it.
///
/// Examples:
///   weft restore weft-2026-01-31.backup --data-dir /var/lib/weft
///   weft restore weft-2026-01-31.backup --check
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct RestoreArgs {
    /// The backup
    file: PathBuf,
    /// Where the control plane will keep everything [default: /var/lib/weft as root, else
    /// ~/.local/state/weft]
    #[arg(long, env = "WEFT_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Only check that the backup is whole
    #[arg(long)]
    check: bool,
}

/// Runs `weft backup`.
pub(crate) async fn backup(client: Client, args: BackupArgs) -> Result<(), CliError> {
    // What a link leads to is not looked at: the link would be replaced.
    if let Ok(found) = fs::symlink_metadata(&args.file) {
        let file = args.file.display();
        if !found.is_file() {
            let text =
                format!("{file} is no regular file; name one, or a file that does not exist");
            return Err(CliError::Input(text));
        }
        if !args.force {
            let text = format!("{file} exists; replace it with --force");
            return Err(CliError::Input(text));
        }
    }
    let partial = partial(&args.file);
    let written = write(&client, &partial).await;
    let written = written.and_then(|summary| {
        fs::rename(&partial, &args.file)?;
        Ok(summary)
    });
    match written {
        Ok(summary) => {
            note(&format!("{}: {}", args.file.display(), described(&summary)));
            Ok(())
        }
        Err(error) => {
            let _left = fs::remove_file(&partial);
            Err(error)
        }
    }
}

/// Runs `weft restore`.
pub(crate) fn restore(args: &RestoreArgs) -> Result<(), CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::Failed(error.to_string());
    if args.check {
        let summary = verify(&args.file).map_err(|error| failed(&error))?;
        note(&format!("whole: {}", described(&summary)));
        return Ok(());
    }
    let dir = args.data_dir.clone().unwrap_or_else(default_data_dir);
    let summary = restore_backup(&args.file, &dir).map_err(|error| failed(&error))?;
    note(&format!("{}: {}", dir.display(), described(&summary)));
    note(&format!(
        "revocations and redeemed tokens after {} are not in it: see `weft certs list` and `weft operator list`",
        moment(summary.header.created)
    ));
    note(&format!(
        "start it with: weft control-plane --data-dir {} --trust-domain {}",
        dir.display(),
        summary.header.trust_domain
    ));
    Ok(())
}

async fn write(client: &Client, partial: &Path) -> Result<Summary, CliError> {
    let named = |error| CliError::Failed(format!("{}: {error}", partial.display()));
    let _left_by_one_that_was_killed = fs::remove_file(partial);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(partial)
        .map_err(named)?;
    let mut output = BufWriter::new(file);
    client.download("/v1/backup", &mut output).await?;
    output.flush().map_err(named)?;
    let file: &File = output.get_ref();
    file.sync_all().map_err(named)?;
    // An answer that was cut off is no backup.
    verify(partial).map_err(|error| CliError::Failed(error.to_string()))
}

fn partial(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

fn described(summary: &Summary) -> String {
    format!(
        "trust domain {}, revision {}, {} resources, {} records, made {}",
        summary.header.trust_domain,
        summary.revision,
        summary.resources,
        summary.records,
        moment(summary.header.created)
    )
}
