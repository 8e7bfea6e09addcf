//! The end-to-end tests, or unit tests, on another kernel than the machine's: Debian's of a series, under qemu, without KVM.
//!
//! The guest has the machine's own root file system, read-only with memory on top, and tells what its tests say through a
//! shared folder. Which kernel it is, and where it comes from, is for `cargo xtask`; the tests are the verb `test`'s.

use std::{
    collections::BTreeSet,
    env,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::{
    console::Console,
    process::{self, Process},
    sandbox,
};

/// What the guest needs beyond what is in its kernel to see the machine's root file system.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];
/// How the guest mounts the folders that qemu shares.
const SHARE: &str = "trans=virtio,version=9p2000.L,msize=262144";
/// Where the guest finds [`INIT`]'s continuation, and leaves what the tests say and their exit code.
const SHARED: &str = "/run/ambit-vm";
const STDOUT: &str = "stdout";
const STDERR: &str = "stderr";
const RESULT: &str = "result";
/// The guest takes of it what it uses.
const MEMORY: &str = "5G";
/// More processors than this only wait for each other under emulation.
const MOST_PROCESSORS: usize = 8;
/// The setting of the agent that makes sense on other kernels only: `AMBIT_KERNEL_TLS=force` for any test.
const KERNEL_TLS: &str = "AMBIT_KERNEL_TLS";
const BOOT_LIMIT: Duration = Duration::from_mins(5);
const LIMIT: Duration = Duration::from_hours(2);
/// How many times as long the tests wait there: everything is emulated, and the machine may have other work.
const SLOWER: u32 = 8;
const POLL: Duration = Duration::from_millis(100);

/// The guest's first program, after a line that sets SHARE and SHARED: puts the root file system together and goes on in
/// it. If anything fails, the guest ends, as by a reset.
const INIT: &str = r#"set -e
/bin/busybox mount -t proc proc /proc
trap 'echo b >/proc/sysrq-trigger' EXIT
/bin/busybox --install -s /bin
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do insmod "$module"; done
mount -t 9p -o "$SHARE,cache=loose,ro" root /lower
mount -t tmpfs -o size=75% tmpfs /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /root
mount -t tmpfs tmpfs /root/run
mkdir "/root$SHARED"
mount -t 9p -o "$SHARE" run "/root$SHARED"
for mounted in proc sys dev; do mount --move "/$mounted" "/root/$mounted"; done
exec switch_root /root /bin/sh "$SHARED/guest"
"#;

/// Which kernel, and which tests run on it.
#[derive(clap::Args)]
pub struct Args {
    /// As `uname -r` prints it.
    #[arg(long)]
    release: String,
    /// Where its `vmlinuz` and `lib/modules` are.
    #[arg(long)]
    kernel: PathBuf,
    /// The daemon, or a program of unit tests.
    #[arg(long)]
    binary: PathBuf,
    /// It is a program of unit tests.
    #[arg(long)]
    unit: bool,
    /// Where logs of tests that fail, and what the kernel says, are kept.
    #[arg(long)]
    logs: PathBuf,
    /// Arguments of the verb `test`, or of that program.
    #[arg(last = true)]
    test: Vec<String>,
}

/// Runs the verb `test`, or unit tests, on the kernel.
pub(super) fn run(args: &Args) -> Result<ExitCode> {
    sandbox::supervised(|sandbox| {
        let Args { release, logs, .. } = args;
        let folder = sandbox.folder();
        fs::create_dir_all(logs).with_context(|| logs.display().to_string())?;
        fs::write(folder.join("guest"), guest(args)?)?;
        let initramfs = initramfs(args, folder)?;
        // Where it can still be read when the run's folder is gone.
        let console = logs.join(format!("kernel-{release}.log"));
        for file in [&folder.join(STDOUT), &folder.join(STDERR), &console] {
            File::create(file).with_context(|| file.display().to_string())?;
        }
        Console::new(true).line(format_args!(
            "==> Booting Linux {release} (emulated: everything takes several times as long)"
        ));
        let mut qemu = qemu(args, &initramfs, folder, &console);
        let mut machine = Process::start(&mut qemu, &folder.join("qemu.log"))?;
        follow(&mut machine, folder).map_err(|error| anyhow!("{error:#}; {}", said(&machine, &console)))?;
        let code =
            fs::read_to_string(folder.join(RESULT)).ok().and_then(|code| code.trim().parse::<i32>().ok());
        match code {
            Some(0) => Ok(()),
            Some(code) => bail!(
                "the tests ended with exit code {code} on Linux {release}; what its kernel said is in {}",
                console.display()
            ),
            None => bail!("the virtual machine ended before its tests did; {}", said(&machine, &console)),
        }
    })
}

/// Writes the guest's first file system, with [`INIT`] in it, into `folder`.
fn initramfs(args: &Args, folder: &Path) -> Result<PathBuf> {
    let tree = folder.join("initramfs");
    let mut names: Vec<String> = ["bin", "dev", "lower", "modules", "proc", "root", "sys", "upper"]
        .map(str::to_owned)
        .into_iter()
        .collect();
    for name in &names {
        fs::create_dir_all(tree.join(name))?;
    }
    let busybox = find("busybox").context("no busybox")?;
    if Command::new("ldd").arg(&busybox).output().context("cannot start ldd")?.status.success() {
        bail!("{} is not static; replace it: apt-get install busybox-static", busybox.display());
    }
    let mut put = |name: String, write: &dyn Fn(&Path) -> Result<()>| {
        write(&tree.join(&name)).with_context(|| name.clone())?;
        names.push(name);
        anyhow::Ok(())
    };
    put("bin/busybox".to_owned(), &|at| Ok(fs::copy(&busybox, at).map(drop)?))?;
    put("init".to_owned(), &|at| {
        fs::write(at, format!("#!/bin/busybox sh\nSHARE={SHARE} SHARED={SHARED}\n{INIT}"))?;
        Ok(fs::set_permissions(at, fs::Permissions::from_mode(0o755))?)
    })?;
    let mut there = BTreeSet::new();
    for module in MODULES {
        let mut modprobe = Command::new(find("modprobe").context("no modprobe")?);
        modprobe.args(["-C", "/dev/null", "-S", &args.release, "--show-depends", "-d"]).arg(&args.kernel);
        for file in module_files(&process::must(modprobe.arg(module))?) {
            if !there.insert(file.clone()) {
                continue;
            }
            // Their order is that of their names. They go in unpacked, as busybox wants them.
            let name = format!("modules/{:02}.ko", there.len());
            put(name, &|at| match file.extension().and_then(|kind| kind.to_str()) {
                Some("ko") => Ok(fs::copy(&file, at).map(drop)?),
                Some("xz") => {
                    fs::copy(&file, at.with_extension("ko.xz"))?;
                    process::must(Command::new("xz").arg("-d").arg(at.with_extension("ko.xz"))).map(drop)
                }
                _ => bail!("{} is packed in a way that is not known here", file.display()),
            })?;
        }
    }
    let archive = folder.join("initramfs.cpio");
    let mut cpio = Command::new("cpio");
    cpio.args(["--quiet", "-o", "-H", "newc", "-O"]).arg(&archive).current_dir(&tree);
    process::run_with_input(&mut cpio, &(names.join("\n") + "\n"), Duration::from_mins(1))?.ok()?;
    Ok(archive)
}

/// The script with which the guest goes on after [`INIT`]: it runs the tests and leaves their exit code. What it says
/// itself comes with what they say.
fn guest(args: &Args) -> Result<String> {
    let word = |path: &Path| path.to_str().map(quoted).with_context(|| format!("{path:?} is no UTF-8"));
    let executable = word(&env::current_exe().context("own executable")?)?;
    let modules = word(&args.kernel.join("lib/modules"))?;
    let (binary, logs) = (word(&args.binary)?, word(&args.logs)?);
    let wanted = |name: &str| {
        ["HOME", "PATH", KERNEL_TLS].contains(&name) || name.starts_with("CARGO") || name.starts_with("RUST")
    };
    let mut environment: Vec<(String, String)> = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| wanted(name))
        .collect();
    environment.push(("TMPDIR".to_owned(), "/run/tmp".to_owned()));
    environment.push((process::PATIENCE.to_owned(), SLOWER.to_string()));
    let exports: String =
        environment.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value))).collect();
    let arguments: String = args.test.iter().map(|argument| format!(" {}", quoted(argument))).collect();
    let tests = match args.unit {
        true => format!("ambit{arguments} >&2"),
        false => format!("harness test --binary /run/programs/ambit --logs {logs}{arguments}"),
    };
    Ok(format!(
        "set -e\n\
         trap 'echo b >/proc/sysrq-trigger' EXIT\n\
         exec </dev/null >{SHARED}/{STDOUT} 2>{SHARED}/{STDERR}\n\
         {exports}\
         mkdir -p /dev/pts /dev/shm /lib/modules /run/tmp /run/programs {logs}\n\
         mount -t devpts devpts /dev/pts\n\
         mount -t tmpfs tmpfs /dev/shm\n\
         mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
         mount -t bpf bpf /sys/fs/bpf\n\
         mount --bind {modules} /lib/modules\n\
         mount -t 9p -o {SHARE} logs {logs}\n\
         ip link set lo up\n\
         # What is built while the tests run must not change under them.\n\
         cp {executable} /run/programs/harness\n\
         cp {binary} /run/programs/ambit\n\
         ulimit -n 65536\n\
         echo \"==> Linux $(uname -r) is up\" >&2\n\
         code=0\n\
         /run/programs/{tests} || code=$?\n\
         echo $code >{SHARED}/{RESULT}\n"
    ))
}

/// qemu with the kernel and the shared folders. It ends when the guest reboots, and with the thread that starts it.
fn qemu(args: &Args, initramfs: &Path, folder: &Path, console: &Path) -> Command {
    let processors = thread::available_parallelism().map_or(1, |all| all.get().min(MOST_PROCESSORS));
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max"]);
    qemu.args(["-m", MEMORY, "-smp", &processors.to_string()]);
    qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    qemu.arg("-serial").arg(format!("file:{}", console.display()));
    qemu.arg("-kernel").arg(args.kernel.join("vmlinuz")).arg("-initrd").arg(initramfs);
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on"]);
    for (tag, shared, options) in [
        ("root", Path::new("/"), ",readonly=on,multidevs=remap"),
        ("run", folder, ""),
        ("logs", &args.logs, ""),
    ] {
        let shared = shared.display().to_string().replace(',', ",,");
        let share = format!("local,path={shared},mount_tag={tag},security_model=none{options}");
        qemu.args(["-virtfs", &share]);
    }
    qemu
}

/// Shows what the tests say as it comes, until the virtual machine has ended.
fn follow(machine: &mut Process, folder: &Path) -> Result<()> {
    let (mut stdout, mut stderr) = (File::open(folder.join(STDOUT))?, File::open(folder.join(STDERR))?);
    let start = Instant::now();
    let mut is_up = false;
    loop {
        let runs = machine.runs();
        forward(&mut stdout, &mut io::stdout())?;
        is_up |= forward(&mut stderr, &mut io::stderr())? > 0;
        if !runs {
            return Ok(());
        }
        ensure!(is_up || start.elapsed() < BOOT_LIMIT, "the virtual machine is not up after {BOOT_LIMIT:?}");
        ensure!(start.elapsed() < LIMIT, "the tests are not done after {LIMIT:?}: run fewer, by a filter");
        thread::sleep(POLL);
    }
}

/// Shows what has been added to a file since the last time; returns how many bytes.
fn forward(from: &mut File, to: &mut impl Write) -> Result<u64> {
    let fresh = io::copy(from, to).context("showing what the tests say")?;
    to.flush()?;
    Ok(fresh)
}

/// The last lines of the guest's kernel and of qemu, for messages.
fn said(machine: &Process, console: &Path) -> String {
    let text = fs::read(console).unwrap_or_default();
    let text = format!("{}{}", String::from_utf8_lossy(&text), machine.output());
    format!("its console ({}) ends with:{}", console.display(), process::tail(&text))
}

/// The files in the answer of `modprobe --show-depends`, in the order in which they are to be loaded.
fn module_files(told: &str) -> impl Iterator<Item = PathBuf> {
    told.lines().filter_map(|line| Some(line.strip_prefix("insmod ")?.trim_end().into()))
}

/// The path of a program, also where only root's `PATH` would look.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// `text` as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_told_from_what_is_built_in() {
        let told = "builtin virtio_pci\ninsmod /a b/kernel/net/9p/9pnet.ko.xz \ninsmod /a b/kernel/fs/9p/9p.ko.xz \n";
        let found: Vec<PathBuf> = module_files(told).collect();
        assert_eq!(
            found,
            ["/a b/kernel/net/9p/9pnet.ko.xz", "/a b/kernel/fs/9p/9p.ko.xz"].map(PathBuf::from)
        );
    }

    #[test]
    fn a_quoted_word_is_one_word_again() {
        let text = "it's $HOME; \"a\" \\ b";
        let told =
            process::must(Command::new("sh").args(["-c", &format!("printf %s {}", quoted(text))])).unwrap();
        assert_eq!(told, text);
    }
}
