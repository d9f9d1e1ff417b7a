//! What stands between the program and Weft's secrets: namespaces, or with `--no-isolation` nothing but
//! its user.

use std::ffi::OsString;
use std::path::PathBuf;

use weft_proxy::app::Inside;
use weft_proxy::nest::{self, Bare, Child, Nest, NestConfig, NestError, Network, Privilege, User};

use super::plan::Plan;
use super::program::Running;
use super::{Capture, RunArgs};

/// What this process could get of the system.
pub(super) enum Isolation {
    /// Mount, PID and network namespaces.
    Network(Privilege),
    /// Mount and PID namespaces.
    Files(Privilege),
    /// None, as was asked for.
    None,
}

impl Isolation {
    /// Enters what the arguments ask for. To be called while there is one thread.
    pub(super) fn enter(args: &RunArgs) -> Result<Self, String> {
        let refused = |error: NestError| format!("{error}\n{}", alternative(args));
        match args.capture {
            Capture::Netns => nest::enter(Network::Own)
                .map(Self::Network)
                .map_err(refused),
            Capture::None if args.no_isolation => {
                nest::seal().map_err(|error| format!("cannot seal this process: {error}"))?;
                Ok(Self::None)
            }
            Capture::None => nest::enter(Network::Host).map(Self::Files).map_err(refused),
        }
    }

    /// The surroundings of the program, which does not run yet.
    pub(super) fn shelter(
        self,
        args: &RunArgs,
        plan: &Plan,
        workers: usize,
    ) -> Result<Shelter, NestError> {
        let mut config = NestConfig::new(args.command.clone());
        config.user = plan.user.clone();
        config.search_domains = vec![
            format!("{}.mesh", plan.workload.namespace()),
            "mesh".to_owned(),
        ];
        Ok(match self {
            Self::Network(privilege) => Shelter::Nest {
                nest: Nest::open(&config, privilege, workers)?,
                config,
            },
            Self::Files(privilege) => Shelter::Files { privilege, config },
            Self::None => Shelter::None {
                command: config.command,
                user: config.user,
            },
        })
    }
}

/// What to do where the system refuses namespaces.
fn alternative(args: &RunArgs) -> &'static str {
    match args.capture {
        Capture::Netns => {
            "weft run: where only a network namespace is refused, use --capture none and --upstream"
        }
        Capture::None => {
            "weft run: without namespaces the program can read what its user may read, the sidecar's \
             keys included if it runs as the sidecar's user; --no-isolation accepts that"
        }
    }
}

/// The surroundings of the program.
pub(super) enum Shelter {
    Nest {
        nest: Nest,
        config: NestConfig,
    },
    Files {
        privilege: Privilege,
        config: NestConfig,
    },
    None {
        command: Vec<OsString>,
        user: Option<User>,
    },
}

impl Shelter {
    /// The sidecar's sockets inside, where the program has a network of its own.
    pub(super) fn take_inside(&mut self, args: &RunArgs) -> Option<Inside> {
        let Self::Nest { nest, config } = self else {
            return None;
        };
        Some(Inside {
            listeners: nest.take_listeners(),
            sockets: nest.sockets(),
            addresses: config.addresses,
            host_ports: args.host_port.clone(),
        })
    }

    /// Starts the program, which shall not reach `secrets`.
    pub(super) fn start(&mut self, secrets: Vec<PathBuf>) -> Result<Running, NestError> {
        Ok(match self {
            Self::Nest { nest, config } => {
                config.hide = secrets;
                Running::Nested(nest.spawn(config)?)
            }
            Self::Files { privilege, config } => {
                config.hide = secrets;
                Running::Nested(Child::spawn_in_host_network(config, *privilege)?)
            }
            Self::None { command, user } => {
                warn(user.as_ref(), &secrets);
                Running::Bare(Bare::spawn(command, user.as_ref())?)
            }
        })
    }
}

/// Says what is not protected, and from whom.
fn warn(user: Option<&User>, secrets: &[PathBuf]) {
    let own = rustix::process::geteuid().as_raw();
    let uid = user.map_or(own, |user| user.uid);
    let whose = match uid == own {
        true => "the sidecar's own user, which may read",
        false => "a user of its own; only their permissions keep it from",
    };
    let secrets: Vec<String> = secrets
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    eprintln!(
        "weft run: warning: --no-isolation: the program runs as uid {uid}, {whose} {}",
        secrets.join(", ")
    );
}
