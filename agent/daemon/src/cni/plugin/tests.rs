use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use ambit_core::discovery::Settings;

use super::*;
use crate::cni::{State, serve};

/// An agent that gives one answer to everything, and what it was asked.
struct Agent {
    dir: tempfile::TempDir,
    asked: Arc<Mutex<Vec<(Request, bool)>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Agent {
    fn answering(answer: Answer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let asked: Arc<Mutex<Vec<(Request, bool)>>> = Arc::default();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (run_dir, told) = (dir.path().to_owned(), asked.clone());
        runtime.spawn(async move {
            let handle = move |request: Request, netns: Option<OwnedFd>| {
                let expected = request.netns.as_ref().map(|netns| netns.inode);
                let found = netns.map(|netns| {
                    let found = File::from(netns).metadata().unwrap();
                    (found.dev(), found.ino())
                });
                told.lock().unwrap().push((request, found == expected));
                std::future::ready(answer.clone())
            };
            serve(&run_dir, handle, std::future::pending()).await.unwrap();
        });
        while !socket_path(dir.path()).exists() {
            thread::sleep(Duration::from_millis(1));
        }
        Self { dir, asked, _runtime: runtime }
    }

    fn call(&self, command: &str, conf: Value) -> Result<Option<Value>, Failure> {
        call(self.dir.path(), command, conf)
    }
}

fn call(run_dir: &Path, command: &str, mut conf: Value) -> Result<Option<Value>, Failure> {
    conf["runDir"] = run_dir.to_str().unwrap().into();
    let conf = read_conf(conf.to_string().as_bytes())?;
    let variables = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "sandbox1"),
        ("CNI_NETNS", "/proc/self/ns/net"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u-1"),
    ];
    let environment = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    Call { environment, conf }.serve()
}

fn conf() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "net",
        "type": BINARY,
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "eth0", "sandbox": "/x" }],
            "ips": [{ "address": "10.1.0.5/24", "interface": 0 }],
            "unknown": { "kept": true },
        },
    })
}

#[test]
fn an_enrolled_or_passed_pod_gets_the_result_before_us() {
    for outcome in [Outcome::Enrolled, Outcome::Passed] {
        let agent = Agent::answering(Answer::plain(outcome));
        assert_eq!(agent.call("ADD", conf()), Ok(Some(conf()["prevResult"].clone())));
        let asked = agent.asked.lock().unwrap();
        let (request, same_netns) = &asked[0];
        assert_eq!(
            request.pod,
            Some(PodRef { namespace: "shop".into(), name: "web".into(), uid: Some("u-1".into()) })
        );
        assert_eq!((&*request.container, &request.ips[..]), ("sandbox1", &["10.1.0.5".parse().unwrap()][..]));
        assert!(same_netns, "the namespace did not arrive: {request:?}");
    }
}

#[test]
fn a_pod_that_could_not_be_enrolled_has_to_wait() {
    let agent = Agent::answering(Answer::saying(Outcome::Failed, "because"));
    let failure = agent.call("ADD", conf()).unwrap_err();
    assert_eq!((failure.code, &*failure.msg), (11, "try again later: because"));
    let document = failure.document(Some("0.4.0"));
    assert_eq!((&document["cniVersion"], &document["code"]), (&json!("0.4.0"), &json!(11)));
    let check = agent.call("CHECK", conf()).unwrap_err();
    assert_eq!((check.code, &*check.msg), (100, "because"));
}

#[test]
fn without_an_agent_only_namespaces_that_opt_in_wait() {
    let dir = tempfile::tempdir().unwrap();
    let passed = Ok(Some(conf()["prevResult"].clone()));
    assert_eq!(call(dir.path(), "ADD", conf()), passed, "nothing is known");
    assert_eq!(call(dir.path(), "STATUS", conf()).unwrap_err().code, 50);
    State::new(&Settings::default(), ["other".to_owned()]).write(dir.path()).unwrap();
    assert_eq!(call(dir.path(), "ADD", conf()), passed, "another namespace opts in");
    assert_eq!(call(dir.path(), "STATUS", conf()), Ok(None));
    State::new(&Settings::default(), ["shop".to_owned()]).write(dir.path()).unwrap();
    let failure = call(dir.path(), "ADD", conf()).unwrap_err();
    assert_eq!(failure.code, 11);
    assert!(failure.msg.contains("the ambit agent of this node is not running"), "{}", failure.msg);
    for command in ["DEL", "CHECK", "GC", "STATUS"] {
        assert_eq!(call(dir.path(), command, conf()), Ok(None), "{command}");
    }
}

#[test]
fn an_agent_that_does_not_know_the_pod_leaves_it_to_the_plugin() {
    let agent = Agent::answering(Answer::saying(Outcome::Unknown, "no view yet"));
    assert!(agent.call("ADD", conf()).is_ok());
    State::new(&Settings::default(), ["shop".to_owned()]).write(agent.dir.path()).unwrap();
    let failure = agent.call("ADD", conf()).unwrap_err();
    assert_eq!((failure.code, &*failure.msg), (11, "try again later: no view yet"));
}

#[test]
fn the_agent_hears_of_pods_that_go() {
    let agent = Agent::answering(Answer::plain(Outcome::Passed));
    let mut gc = conf();
    gc["cni.dev/valid-attachments"] =
        json!([{ "containerID": "s1", "ifname": "eth0" }, { "containerID": "s2" }]);
    assert_eq!(agent.call("DEL", json!({ "cniVersion": "1.1.0" })), Ok(None));
    assert_eq!(agent.call("GC", gc), Ok(None));
    let asked = agent.asked.lock().unwrap();
    assert_eq!((asked[0].0.command, &*asked[0].0.container), (Command::Del, "sandbox1"));
    assert_eq!(
        (asked[1].0.command, &asked[1].0.valid[..]),
        (Command::Gc, &["s1".to_owned(), "s2".to_owned()][..])
    );
}

#[test]
fn versions_are_told_and_unknown_ones_refused() {
    let dir = tempfile::tempdir().unwrap();
    let told = call(dir.path(), "VERSION", json!({ "cniVersion": "1.1.0" })).unwrap().unwrap();
    assert_eq!(told["supportedVersions"].as_array().unwrap().last(), Some(&json!("1.1.0")));
    assert_eq!(call(dir.path(), "ADD", json!({ "cniVersion": "9.0.0" })).unwrap_err().code, 1);
    assert_eq!(call(dir.path(), "DANCE", conf()).unwrap_err().code, 4);
    let nameless = Call { environment: HashMap::new(), conf: Conf::default() };
    assert_eq!(nameless.serve().unwrap_err().code, 4);
}

#[test]
fn nonsense_on_standard_input_is_an_error_of_its_own() {
    for text in ["{", "[]", "\"x\"", "{\"runDir\": 5}"] {
        assert_eq!(read_conf(text.as_bytes()).unwrap_err().code, 6, "{text}");
    }
    assert!(read_conf(" \n".as_bytes()).is_ok());
    assert_eq!(read_conf(io::repeat(b' ')).unwrap_err().code, 6, "endless input");
}

#[test]
fn what_is_no_pod_of_kubernetes_passes() {
    let dir = tempfile::tempdir().unwrap();
    State::new(&Settings::default(), ["".to_owned()]).write(dir.path()).unwrap();
    let environment = [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c"), ("CNI_NETNS", "/proc/self/ns/net")];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let call = Call { environment, conf: read_conf(conf().to_string().as_bytes()).unwrap() };
    assert_eq!(call.serve(), Ok(Some(conf()["prevResult"].clone())));
}
