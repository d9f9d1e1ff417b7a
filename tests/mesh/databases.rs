//! Databases: opaque TCP, the server speaking first (MariaDB), and the trust that PostgreSQL puts
//! into 127.0.0.1, which a mesh peer must not inherit.

use std::path::Path;
use std::time::Duration;

use crate::support::{Bed, Machine, Mesh, Pods, Program, Running, need, root};

const LIMIT: Duration = Duration::from_secs(60);

/// The user that PostgreSQL runs as: it refuses to be root.
const POSTGRES_USER: &str = "postgres";

/// The user that MariaDB runs as.
const MARIADB_USER: &str = "mysql";

/// Runs a command as a user, where the tests are root.
fn as_user(bed: &dyn Bed, user: &str, program: Program) {
    let logs = bed.dir().join("logs");
    let program = if root() { program.user(user) } else { program };
    program.run("prepare", &logs, LIMIT).success();
}

/// A directory of a user's own.
fn directory(bed: &dyn Bed, name: &str, user: &str) -> String {
    let path = bed.dir().join(name);
    std::fs::create_dir(&path).expect("make a directory");
    if root() {
        let dir = path.display();
        Program::line(&format!("chown {user} {dir}"))
            .run("chown", &bed.dir().join("logs"), LIMIT)
            .success();
    }
    path.display().to_string()
}

/// PostgreSQL as Debian makes it: `trust` is added for 127.0.0.1 by initdb's default, everyone
/// else is asked for a password.
fn postgres(bed: &dyn Bed) -> Running {
    let data = directory(bed, "postgres", POSTGRES_USER);
    let bin = "/usr/lib/postgresql/15/bin";
    let bin = if Path::new(bin).exists() {
        bin
    } else {
        "/usr/lib/postgresql/17/bin"
    };
    let initdb =
        format!("{bin}/initdb --auth=trust --encoding=UTF8 --locale=C --no-sync -D {data}");
    as_user(bed, POSTGRES_USER, Program::line(&initdb));
    let create = "ALTER USER postgres PASSWORD 'secret'";
    let single = format!("echo \"{create}\" | {bin}/postgres --single -D {data} postgres");
    as_user(bed, POSTGRES_USER, Program::shell(single));
    let rules = format!("{data}/pg_hba.conf");
    let stock = std::fs::read_to_string(&rules).expect("read pg_hba.conf");
    assert!(
        stock.contains("127.0.0.1/32"),
        "initdb's own rules trust 127.0.0.1"
    );
    let more = "host all all 0.0.0.0/0 scram-sha-256\nhost all all ::/0 scram-sha-256\n";
    std::fs::write(&rules, stock + more).expect("write pg_hba.conf");
    let serve =
        format!("{bin}/postgres -D {data} -k {data} -c listen_addresses=* -c fsync=off -p 5432");
    bed.serve(
        "postgres",
        &["5432:tcp"],
        Program::line(&serve).user(POSTGRES_USER),
    )
}

fn psql(bed: &dyn Bed, sql: &str) -> Program {
    let database = format!(
        "host={} user=postgres dbname=postgres sslmode=disable connect_timeout=15",
        bed.host("postgres")
    );
    Program::new("psql")
        .args(["-w", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql])
        .arg(database)
}

fn psql_and_postgresql(bed: &dyn Bed) {
    let _server = postgres(bed);
    let stranger = bed.call("stranger", &["postgres"], psql(bed, "SELECT 1"), LIMIT);
    assert_ne!(
        stranger.code(),
        0,
        "a peer was trusted like 127.0.0.1: {stranger}"
    );
    assert!(
        stranger.stderr.contains("no password supplied"),
        "{stranger}"
    );

    let known = |sql: &str| {
        let program = psql(bed, sql).env("PGPASSWORD", "secret");
        bed.call("known", &["postgres"], program, LIMIT)
            .success()
            .stdout
    };
    assert_eq!(
        known("SELECT sum(n) FROM generate_series(1, 100000) n").trim(),
        "5000050000"
    );
    assert_eq!(known("SELECT repeat('y', 5000000)").trim().len(), 5_000_000);
    let address = known("SELECT client_addr FROM pg_stat_activity WHERE pid = pg_backend_pid()");
    assert!(
        !address.starts_with("127.") && address.trim() != "::1",
        "dialled from loopback: {address}"
    );
}

/// MariaDB greets before the client has said a word.
fn mariadb_and_mariadb(bed: &dyn Bed) {
    let data = directory(bed, "mariadb", MARIADB_USER);
    // Temporary tables are named after the process, and two servers in namespaces of their own may
    // have the same number.
    let temporary = directory(bed, "mariadb-tmp", MARIADB_USER);
    let install = format!(
        "env TMPDIR={temporary} mariadb-install-db --no-defaults --datadir={data} --auth-root-authentication-method=normal --skip-test-db"
    );
    as_user(bed, MARIADB_USER, Program::line(&install));
    let accounts = bed.dir().join("accounts.sql");
    std::fs::write(
        &accounts,
        "CREATE USER 'app'@'%' IDENTIFIED BY 'secret';\nGRANT ALL ON *.* TO 'app'@'%';\n",
    )
    .expect("write the accounts");
    let serve = format!(
        "env TMPDIR={temporary} mariadbd --no-defaults --datadir={data} --socket={data}/sock --pid-file={data}/pid --port=3306 \
         --bind-address=* --init-file={} --skip-name-resolve --innodb-flush-log-at-trx-commit=0",
        accounts.display()
    );
    let _server = bed.serve(
        "mariadb",
        &["3306:tcp"],
        Program::line(&serve).user(MARIADB_USER),
    );
    let ask = |more: &str, sql: &str| {
        let line = format!(
            "mariadb --no-defaults --batch --skip-column-names --connect-timeout=15 -h {} -P 3306 -u app {more} -e",
            bed.host("mariadb")
        );
        bed.call("teller", &["mariadb"], Program::line(&line).arg(sql), LIMIT)
    };
    assert_eq!(
        ask("-psecret", "SELECT 6 * 7").success().stdout.trim(),
        "42"
    );
    let long = ask(
        "-psecret --max-allowed-packet=64M",
        "SELECT REPEAT('m', 5000000)",
    )
    .success();
    assert_eq!(long.stdout.trim().len(), 5_000_000);
    let denied = ask("-pwrong", "SELECT 1");
    assert!(denied.stderr.contains("Access denied"), "{denied}");
}

fn redis_cli_and_redis(bed: &dyn Bed) {
    let serve = "redis-server --port 6379 --bind '*' '-::*' --protected-mode no --save \"\" --appendonly no";
    let serve = Program::shell(format!("cd {} && exec {serve}", bed.dir().display()));
    let _server = bed.serve("redis", &["6379:tcp"], serve);
    let cli = format!("redis-cli -h {} -p 6379", bed.host("redis"));
    let ask = |script: &str| {
        let script = script.replace("CLI", &cli);
        bed.call("asker", &["redis"], Program::shell(script), LIMIT)
            .success()
            .stdout
    };
    assert_eq!(ask("CLI set a 1 && CLI incr a").trim(), "OK\n2");
    let pipe = "seq 1 20000 | sed 's/.*/SET key:& value:&/' | CLI --pipe && CLI dbsize";
    let answer = ask(pipe);
    assert!(
        answer.contains("errors: 0, replies: 20000") && answer.ends_with("20001\n"),
        "{answer}"
    );
    let subscribed = "(sleep 1; CLI publish news hello >/dev/null) & timeout 5 CLI subscribe news | head -6 | tail -1";
    assert_eq!(ask(subscribed).trim(), "hello");
}

/// Each scenario in each place; the names say which.
macro_rules! everywhere {
    ($scenario:ident, [$($need:literal),+], $plain:ident, $run:ident, $pods:ident) => {
        #[test]
        fn $plain() {
            need!("root", $($need),+);
            $scenario(&Pods::plain(&Machine::shared()));
        }

        #[test]
        fn $run() {
            need!($($need),+);
            $scenario(&Mesh::start(&Machine::shared()));
        }

        #[test]
        fn $pods() {
            need!("root", $($need),+);
            $scenario(&Pods::meshed(&Machine::shared()));
        }
    };
}

everywhere!(
    psql_and_postgresql,
    ["psql", "initdb"],
    psql_and_postgresql_without_a_mesh,
    psql_and_postgresql_under_weft_run,
    psql_and_postgresql_as_pods
);
everywhere!(
    mariadb_and_mariadb,
    ["mariadb", "mariadbd", "mariadb-install-db"],
    mariadb_without_a_mesh,
    mariadb_under_weft_run,
    mariadb_as_pods
);
everywhere!(
    redis_cli_and_redis,
    ["redis-cli", "redis-server"],
    redis_without_a_mesh,
    redis_under_weft_run,
    redis_as_pods
);
