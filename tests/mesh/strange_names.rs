//! A program that asks for names that nobody has: they push out nothing.

use std::time::Duration;

use crate::http::nginx;
use crate::support::{Bed, Machine, PodSettings, Pods, need, python_code};

const LIMIT: Duration = Duration::from_secs(90);

/// Asks for many names that nobody has, then for one that somebody serves, twice.
const ASKS: &str = "
import socket, sys, urllib.request
for number in range(int(sys.argv[1])):
    try:
        socket.getaddrinfo(f'nobody-{number}.shop.mesh', 80, socket.AF_INET)
        sys.exit(f'{number} has an address')
    except socket.gaierror:
        pass
for _ in range(2):
    print(urllib.request.urlopen('http://web.shop.mesh:8080/', timeout=20).status)
";

#[test]
fn names_that_nobody_has_do_not_use_up_the_names_that_may_be_known() {
    need!("root", "nginx", "python3", "curl");
    let machine = Machine::shared();
    let settings = PodSettings {
        flags: &[],
        config: "limits: {max_destinations: 60}\n",
    };
    let pods = Pods::meshed_with(&machine, &settings);
    let _web = pods.serve("web", &["8080"], nginx(pods.dir(), 8080));
    let asked = pods.call("app", &["web"], python_code(ASKS).arg("200"), LIMIT);
    assert_eq!(asked.success().stdout, "200\n200\n");
}
