//! Run as root. Each starts real programs in a sandbox of its own over the host's root, with no network.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use super::super::{CgroupTree, Limits, Mask, RootSpec, mount_root, own_exe, seed};
use super::*;

/// Names the file with the specification, in the environment of a process that is to be the sandbox's
/// parent instead of a test run.
const CHILD: &str = "PICO_TEST_SANDBOX_INIT";

/// In the environment of an app that has made itself be this program: whether it could write its file.
const INSIDE: &str = "PICO_TEST_INSIDE";

/// Runs before `main`, and so before the test runner has threads: [`exec_in_sandbox`] wants none.
#[used]
#[unsafe(link_section = ".init_array")]
static HOOK: extern "C" fn() = {
    extern "C" fn hook() {
        if let Some(file) = std::env::var_os(CHILD) {
            sandbox_init(Path::new(&file));
            std::process::exit(1);
        }
        if std::env::var_os(INSIDE).is_some() {
            let writable = nix::unistd::access("/proc/self/exe", nix::unistd::AccessFlags::W_OK);
            println!("{writable:?}");
            std::process::exit(0);
        }
    }
    hook
};

/// Does what `pico-shim sandbox-init` does. The report comes as standard input.
fn sandbox_init(file: &Path) {
    own_exe::protect().unwrap();
    let spec: SandboxSpec = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let report = io::stdin().as_fd().try_clone_to_owned().unwrap();
    if let Err(error) = mount_root(&spec.root) {
        write!(File::from(report), "{error}").unwrap();
        return;
    }
    _ = exec_in_sandbox(&spec, report);
}

/// A sandbox over the host's root that goes with the test.
struct Sandbox {
    dir: tempfile::TempDir,
    tree: CgroupTree,
    spec: SandboxSpec,
}

impl Sandbox {
    fn new(test: &str) -> Sandbox {
        let dir = tempfile::tempdir().unwrap();
        let tree = CgroupTree::open(&format!("t{}-{test}", std::process::id())).unwrap();
        tree.app(
            "app",
            &Limits {
                pids: Some(50),
                ..Limits::default()
            },
        )
        .unwrap();
        let cgroup = tree.run("app", 1).unwrap();
        cgroup.create().unwrap();
        let spec = SandboxSpec {
            hostname: "inside".into(),
            root: RootSpec {
                lower: vec!["/".into()],
                mask: Mask::Host { hidden: vec![] },
                upper: dir.path().join("upper"),
                work: dir.path().join("work"),
                mountpoint: dir.path().join("root"),
            },
            // The one that sandbox_init makes.
            netns: "/proc/self/ns/net".into(),
            cgroup,
            command: vec![],
            env: vec![("A".into(), "b c".into())],
            user: None,
            workdir: "/".into(),
            capabilities: vec![],
            no_new_privs: true,
            seccomp: true,
        };
        Sandbox { dir, tree, spec }
    }

    /// Starts `command`; its pid and the reading end of its standard output and error.
    fn start(&self, command: &[&str]) -> Result<(i32, File), SandboxError> {
        let spec = SandboxSpec {
            command: command.iter().map(|s| (*s).to_owned()).collect(),
            ..self.spec.clone()
        };
        let file = self.dir.path().join("spec.json");
        fs::write(&file, serde_json::to_vec(&spec).unwrap()).unwrap();
        let (report, report_end) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (output, output_end) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let mut init = Command::new(std::env::current_exe().unwrap());
        init.env(CHILD, &file).stdin(Stdio::from(report_end));
        init.stdout(Stdio::from(output_end.try_clone().unwrap()))
            .stderr(Stdio::from(output_end));
        let mut child = init.spawn().unwrap();
        // With our copies of the pipes' writing ends.
        drop(init);
        let pid = read_report(File::from(report));
        child.wait().unwrap();
        Ok((pid?, File::from(output)))
    }

    /// What a shell script in the sandbox prints, errors included, until it and its children end.
    fn run(&self, script: &str) -> String {
        let (_, mut output) = self.start(&["/bin/sh", "-c", script]).unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        self.wait_until_gone();
        text.trim().to_owned()
    }

    fn refused(&self, command: &[&str]) -> String {
        let error = self.start(command).map(|_| ()).unwrap_err();
        self.wait_until_gone();
        error.to_string()
    }

    /// The mount of the writable layer goes with the last process, and there can be but one.
    fn wait_until_gone(&self) {
        self.spec
            .cgroup
            .wait_empty(std::time::Duration::from_secs(10))
            .unwrap();
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.tree.remove_all().unwrap();
    }
}

/// A field of `/proc/PID/status`, as the host sees it.
fn status(pid: i32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_default()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn rights_of_a_started_app_are_what_the_policy_says() {
    let mut sandbox = Sandbox::new("rights");
    let check = |sandbox: &Sandbox, mask: u64, bound: u64, nnp: &str, seccomp: &str| {
        let (pid, _output) = sandbox.start(&["sleep", "1000"]).unwrap();
        let hex = |mask: u64| format!("{mask:016x}");
        for (field, want) in [
            ("CapEff", hex(mask)),
            ("CapPrm", hex(mask)),
            ("CapBnd", hex(bound)),
            ("CapInh", hex(0)),
            ("CapAmb", hex(0)),
            ("NoNewPrivs", nnp.to_owned()),
            ("Seccomp", seccomp.to_owned()),
        ] {
            assert_eq!(status(pid, field), want, "{field}");
        }
        sandbox.spec.cgroup.kill().unwrap();
    };
    let default = caps::Policy::new(&[]).unwrap().mask();
    check(&sandbox, default, default, "1", "2");
    sandbox.spec.user = Some("33:33".into());
    check(&sandbox, 0, default, "1", "2");
    sandbox.spec.user = None;
    sandbox.spec.capabilities = vec!["NET_RAW".into()];
    (sandbox.spec.no_new_privs, sandbox.spec.seccomp) = (false, true);
    check(&sandbox, default | 1 << 13, default | 1 << 13, "0", "2");
    sandbox.spec.seccomp = false;
    check(&sandbox, default | 1 << 13, default | 1 << 13, "0", "0");
}

#[test]
fn an_app_is_alone_in_its_namespaces_with_a_clean_process() {
    let mut sandbox = Sandbox::new("clean");
    sandbox.spec.user = Some("33:33".into());
    sandbox.spec.workdir = "/usr".into();
    let script = "echo $$ $(hostname) $(id -u):$(id -g) $PWD $(umask) [$A] $HOME $PATH; ls /proc/self/fd | tr '\\n' ' '; \
        readlink /proc/self/fd/0; echo /proc/[0-9]*; ulimit -n; ulimit -c; echo err >/dev/stderr; \
        cat /proc/self/oom_score_adj; grep -c . /proc/net/dev";
    let path = PATH;
    let home = users::lookup(Path::new("/"), Some("33:33")).unwrap().home;
    let want = format!(
        "1 inside 33:33 /usr 0022 [b c] {home} {path}\n0 1 2 3 /dev/null\n/proc/1\n1024\n0\nerr\n0\n3"
    );
    assert_eq!(sandbox.run(script), want);
    let (pid, _output) = sandbox.start(&["sleep", "1000"]).unwrap();
    assert_eq!(status(pid, "SigIgn"), "0000000000000000");
    assert_eq!(status(pid, "SigBlk"), "0000000000000000");
    assert_eq!(status(pid, "NSpid").split(' ').count(), 2);
    assert_eq!(status(pid, "THP_enabled"), "0");
    for ns in ["pid", "mnt", "uts", "ipc", "net"] {
        let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{ns}")).unwrap();
        assert_ne!(link(&pid.to_string()), link("self"), "{ns}");
    }
    assert_eq!(sandbox.spec.cgroup.procs().unwrap(), [pid]);
}

#[test]
fn hidden_paths_cannot_be_seen() {
    let mut sandbox = Sandbox::new("hidden");
    let secret = tempfile::Builder::new()
        .prefix("pico-secret-")
        .tempdir_in("/var/lib")
        .unwrap();
    fs::write(secret.path().join("key"), "secret").unwrap();
    let link = tempfile::Builder::new()
        .prefix("pico-link-")
        .tempdir_in("/var/lib")
        .unwrap();
    std::os::unix::fs::symlink(secret.path(), link.path().join("l")).unwrap();
    sandbox.spec.root.mask = Mask::Host {
        hidden: vec![link.path().join("l")],
    };
    let mut script =
        String::from("for d in /root /home /tmp /var/tmp /sys /run/lock; do ls -A $d; done; ls /run; ");
    for path in [
        "/etc/shadow",
        "/etc/shadow-",
        "/etc/gshadow",
        "/etc/ssh",
        "/boot",
        "/lost+found",
        "/etc/ssl/private",
    ] {
        write!(script, "[ -e {path} ] && echo {path} is seen;").unwrap();
    }
    let (secret_path, link_path) = (secret.path().display(), link.path().join("l"));
    write!(
        script,
        "ls -d {secret_path} 2>/dev/null; ls -d {} 2>/dev/null;",
        link_path.display()
    )
    .unwrap();
    script += "stat -c '%a %u %n' /tmp /var/tmp /run /run/lock /root /dev/shm / /var /var/lib /etc";
    let mode = |p: &str| {
        fs::metadata(p)
            .map(|m| format!("{:o} {} {p}", m.mode() & 0o7777, m.uid()))
            .unwrap()
    };
    let want = format!(
        "lock\n1777 0 /tmp\n1777 0 /var/tmp\n755 0 /run\n1777 0 /run/lock\n700 0 /root\n1777 0 /dev/shm\n755 0 /\n{}\n{}\n{}",
        mode("/var"),
        mode("/var/lib"),
        mode("/etc")
    );
    assert_eq!(sandbox.run(&script), want);
}

#[test]
fn the_kernels_settings_cannot_be_written() {
    let sandbox = Sandbox::new("proc");
    let out = sandbox.run(
        "for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/self/oom_score_adj; do \
         (echo x > $f) 2>/dev/null && echo $f written; done; \
         head -c1 /proc/kcore >/dev/null 2>&1 && echo kcore read; awk '$2==\"/proc\" {print $4}' /proc/mounts; \
         awk '{print $3}' /proc/mounts | sort | tr '\\n' ' '",
    );
    assert_eq!(out, "ro,nosuid,nodev,noexec,relatime\ndevpts overlay proc");
}

/// Errors of system calls made inside, by number; 0 is success.
fn errnos(sandbox: &Sandbox, calls: &[(libc::c_long, &[u32])]) -> String {
    let mut script = String::from(
        "sub t { my $n = shift; $! = 0; my $r = syscall($n, @_); printf '%d ', $r < 0 ? $! : 0 }\n",
    );
    for (call, args) in calls {
        let args: Vec<String> = args.iter().map(u32::to_string).collect();
        writeln!(script, "t({call}, {});", args.join(", ")).unwrap();
    }
    sandbox.run(&format!("perl -e '{}' 2>&1", script.replace('\'', "'\\''")))
}

#[test]
fn what_reaches_outside_is_refused() {
    let mut sandbox = Sandbox::new("refused");
    let calls: &[(libc::c_long, &[u32])] = &[
        (libc::SYS_mount, &[0, 0, 0, 0, 0]),
        (libc::SYS_unshare, &[0x1000_0000]),
        (libc::SYS_ptrace, &[0, 0, 0, 0]),
        (libc::SYS_bpf, &[0, 0, 0]),
        (libc::SYS_io_uring_setup, &[1, 0]),
        (libc::SYS_clone3, &[0, 0]),
        (libc::SYS_socket, &[2, 1, 262]),
        (libc::SYS_socket, &[40, 1, 0]),
        (libc::SYS_socket, &[2, 3, 1]),
        (libc::SYS_unshare, &[0x400]),
        (libc::SYS_socket, &[2, 1, 6]),
    ];
    let [perm, nosys] = [libc::EPERM, libc::ENOSYS];
    let (mptcp, family) = (libc::EPROTONOSUPPORT, libc::EAFNOSUPPORT);
    let want = format!("{perm} {perm} {perm} {perm} {nosys} {nosys} {mptcp} {family} {perm} 0 0");
    assert_eq!(errnos(&sandbox, calls), want);
    // Without the filter the missing capabilities still refuse.
    sandbox.spec.seccomp = false;
    let new_mounts: &[u32] = &[0x0002_0000];
    assert_eq!(
        errnos(&sandbox, &[(libc::SYS_unshare, new_mounts)]),
        perm.to_string()
    );
    let out = sandbox
        .run("mount -t tmpfs x /tmp 2>/dev/null || echo no; mknod /tmp/x b 1 1 2>/dev/null || echo no");
    assert_eq!(out, "no\nno");
}

#[test]
fn devices_work() {
    let sandbox = Sandbox::new("devices");
    let out = sandbox.run(
        "head -c4 /dev/zero | od -An -tx1; head -c8 /dev/urandom | wc -c; head -c8 /dev/random | wc -c; \
         echo x >/dev/null; (echo x >/dev/full) 2>/dev/null || echo full; cat /dev/null; echo out >/dev/stdout; \
         ls /dev | tr '\\n' ' '; perl -e 'open my $m, \"+<\", \"/dev/ptmx\" or die; print -e \"/dev/pts/0\" ? \"\\npty\" : \"none\"'",
    );
    let names = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    assert_eq!(out, format!("00 00 00 00\n8\n8\nfull\nout\n{names} \npty"));
}

#[test]
fn what_cannot_be_started_is_refused_with_what_to_do() {
    let mut sandbox = Sandbox::new("missing");
    fs::create_dir_all(sandbox.dir.path().join("seed/opt")).unwrap();
    for (name, text, mode) in [
        ("noexec", "#!/bin/sh\n", 0o644),
        ("noint", "#!/no/such/sh\n", 0o755),
        ("garbage", "\x01\x02", 0o755),
    ] {
        let file = sandbox.dir.path().join("seed/opt").join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
    seed(&sandbox.spec.root, &sandbox.dir.path().join("seed")).unwrap();
    for (command, text) in [
        (
            "/usr/sbin/foo",
            "command /usr/sbin/foo not found in the app's root file system",
        ),
        (
            "no-such-command",
            "command no-such-command not found in /usr/local/sbin:",
        ),
        ("/opt/noexec", "may not execute it"),
        ("/opt/noint", "the interpreter or loader it names is not in"),
        ("/opt/garbage", "is no program for this machine"),
        ("", "the command of the app is empty"),
    ] {
        let error = sandbox.refused(&[command]);
        assert!(error.contains(text), "{command}: {error}");
    }
    sandbox.spec.user = Some("nobody-here".into());
    assert!(
        sandbox
            .refused(&["true"])
            .contains("user 'nobody-here' is not in /etc/passwd")
    );
    sandbox.spec.user = None;
    sandbox.spec.workdir = "/no/such".into();
    assert!(sandbox.refused(&["true"]).contains("cannot start in /no/such"));
    sandbox.spec.workdir = "/".into();
    sandbox.spec.capabilities = vec!["FLY".into()];
    assert!(sandbox.refused(&["true"]).contains("'FLY' is no capability"));
    sandbox.spec.capabilities.clear();
    sandbox.spec.netns = "/no/such/netns".into();
    assert!(
        sandbox
            .refused(&["true"])
            .contains("cannot open the network namespace /no/such/netns")
    );
    sandbox.spec.netns = "/proc/self/ns/net".into();
    sandbox.spec.root.lower = vec!["/no/such/root".into()];
    assert!(
        sandbox
            .refused(&["true"])
            .contains("the root directory /no/such/root does not exist")
    );
}

#[test]
fn a_report_is_read_whatever_it_says() {
    assert_eq!(parse_report("pid 12\n").unwrap(), 12);
    for (text, want) in [
        ("", "was killed before"),
        ("pid 12\ncommand x not found", "command x not found"),
        ("cannot enter", "cannot enter"),
        ("pid x\n", "pid x"),
    ] {
        let error = parse_report(text).unwrap_err().to_string();
        assert!(error.contains(want), "{text}: {error}");
    }
}

#[test]
fn what_an_app_writes_lands_in_its_own_layer_only() {
    let sandbox = Sandbox::new("upper");
    let name = format!("pico-sandbox-test-{}", std::process::id());
    let out = sandbox.run(&format!(
        "echo mine > /etc/{name}; echo mine > /tmp/{name}; rm /etc/debian_version; mkdir -p /var/lib/{name}/d; \
         mv /etc/cron.d /etc/{name}.d && echo moved"
    ));
    assert_eq!(out, "moved");
    let upper = &sandbox.spec.root.upper;
    assert_eq!(
        fs::read_to_string(upper.join("etc").join(&name)).unwrap(),
        "mine\n"
    );
    assert!(upper.join("var/lib").join(&name).join("d").is_dir());
    assert!(upper.join("tmp").join(&name).exists());
    assert!(!Path::new("/etc").join(&name).exists() && !Path::new("/tmp").join(&name).exists());
    assert!(Path::new("/etc/debian_version").exists());
    // A second start finds it all again, mask included.
    assert_eq!(
        sandbox.run(&format!(
            "cat /etc/{name} /tmp/{name}; ls -A /root /home; [ -e /etc/shadow ] || echo no"
        )),
        "mine\nmine\n/home:\n\n/root:\nno"
    );
}

#[test]
fn an_app_that_is_our_own_program_cannot_write_its_file() {
    let mut sandbox = Sandbox::new("own-exe");
    let script = sandbox.dir.path().join("seed/opt/us");
    fs::create_dir_all(script.parent().unwrap()).unwrap();
    fs::write(&script, "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    seed(&sandbox.spec.root, &sandbox.dir.path().join("seed")).unwrap();
    sandbox.spec.env.push((INSIDE.into(), "1".into()));
    let (_, mut output) = sandbox.start(&["/opt/us"]).unwrap();
    let mut said = String::new();
    output.read_to_string(&mut said).unwrap();
    sandbox.wait_until_gone();
    assert_eq!(said, "Err(EROFS)\n");
}

#[test]
fn killing_the_group_kills_the_whole_sandbox() {
    let sandbox = Sandbox::new("kill");
    let (pid, mut output) = sandbox
        .start(&[
            "sh",
            "-c",
            "setsid sleep 1000 & setsid sleep 1000 & echo ready; wait",
        ])
        .unwrap();
    output.read_exact(&mut [0; 6]).unwrap();
    assert_eq!(sandbox.spec.cgroup.procs().unwrap().len(), 3);
    sandbox.spec.cgroup.kill().unwrap();
    assert_eq!(sandbox.spec.cgroup.procs().unwrap(), Vec::<i32>::new());
    assert!(!Path::new(&format!("/proc/{pid}/exe")).exists());
    sandbox.spec.cgroup.remove().unwrap();
}

#[test]
fn an_app_runs_from_a_directory_of_its_own() {
    let mut sandbox = Sandbox::new("directory");
    let root = sandbox.dir.path().join("root-directory");
    let libraries = Command::new("ldd").arg("/bin/sh").output().unwrap().stdout;
    let libraries = String::from_utf8(libraries).unwrap();
    let files = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    for file in files.chain(["/bin/sh"]) {
        let copy = root.join(&file[1..]);
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(file, copy).unwrap();
    }
    sandbox.spec.root.lower = vec![root];
    sandbox.spec.root.mask = Mask::Directory;
    let out = sandbox.run("echo x > /dev/null; echo x > /tmp/x; echo $$ $HOME; echo /[a-km-z]*");
    assert_eq!(out, "1 /\n/bin /dev /proc /run /sys /tmp");
}
