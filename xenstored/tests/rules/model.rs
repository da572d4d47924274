//! Random requests of three connections, with transactions, against a model so simple that it is obviously right.
//!
//! A transaction that commits must have answered as if all its requests had been made at the moment of its commit. One
//! that fails must have had company: a change by somebody else at, above or below one of its paths.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::script::Player;

#[derive(Clone, Debug)]
struct Node {
    value: String,
    owner: u16,
    others: char,
}

#[derive(Clone, Debug)]
struct Model(BTreeMap<String, Node>);

#[derive(Clone, Debug)]
enum Request {
    Read,
    Directory,
    GetPerms,
    Write(u8),
    Mkdir,
    Rm,
    SetPerms(char),
}

#[derive(Clone, Debug)]
enum Step {
    Start(u16),
    End(u16, bool),
    Ask { who: u16, inside: bool, path: String, request: Request },
}

#[derive(Debug)]
struct Transaction {
    id: String,
    /// Changes before its first request.
    since: Option<usize>,
    view: Model,
    asked: Vec<(String, Request, String)>,
    /// What its requests were about, with the missing parents.
    about: Vec<String>,
}

fn parent(path: &str) -> String {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/".into(),
        Some((parent, _)) => parent.into(),
    }
}

fn related(a: &str, b: &str) -> bool {
    let above = |a: &str, b: &str| a == "/" || a == b || b.starts_with(&format!("{a}/"));
    above(a, b) || above(b, a)
}

impl Model {
    fn new() -> Self {
        let node = |others| Node { value: String::new(), owner: 0, others };
        let nodes = [("/", 'b'), ("/tool", 'n'), ("/tool/xenstored", 'n')];
        Self(nodes.into_iter().map(|(path, others)| (path.to_owned(), node(others))).collect())
    }

    fn nearest(&self, path: &str) -> &Node {
        self.0.get(path).unwrap_or_else(|| self.nearest(&parent(path)))
    }

    /// The answer, and what has to be hidden is hidden.
    fn ask(&mut self, who: u16, path: &str, request: &Request) -> String {
        let writes =
            matches!(request, Request::Write(_) | Request::Mkdir | Request::Rm | Request::SetPerms(_));
        let node = self.nearest(path);
        let may = who == 0
            || node.owner == who
            || node.others == 'b'
            || node.others == if writes { 'w' } else { 'r' };
        let exists = self.0.contains_key(path);
        match request {
            _ if !may => "EACCES".into(),
            Request::Write(value) => {
                self.create(who, path);
                self.0.get_mut(path).unwrap().value = value.to_string();
                "OK".into()
            }
            Request::Mkdir => {
                self.create(who, path);
                "OK".into()
            }
            Request::Rm if path == "/" => "EINVAL".into(),
            Request::Rm if exists || self.0.contains_key(&parent(path)) => {
                self.0.retain(|other, _| other != path && !other.starts_with(&format!("{path}/")));
                "OK".into()
            }
            _ if !exists => "ENOENT".into(),
            Request::SetPerms(_) if who != 0 && self.0[path].owner != who => "EACCES".into(),
            Request::SetPerms(others) => {
                self.0.get_mut(path).unwrap().others = *others;
                "OK".into()
            }
            Request::Read => self.0[path].value.clone(),
            Request::GetPerms => format!("{}{}", self.0[path].others, self.0[path].owner),
            Request::Directory | Request::Rm => self.children(path).join("|"),
        }
    }

    fn create(&mut self, who: u16, path: &str) {
        if !self.0.contains_key(path) {
            self.create(who, &parent(path));
            let above = &self.0[&parent(path)];
            let owner = if who == 0 { above.owner } else { who };
            let node = Node { value: String::new(), owner, others: above.others };
            self.0.insert(path.to_owned(), node);
        }
    }

    /// The path and those of its parents that are missing.
    fn about(&self, path: &str) -> Vec<String> {
        let mut paths = vec![path.to_owned()];
        while let Some(above) =
            paths.last().map(|path| parent(path)).filter(|above| !self.0.contains_key(above))
        {
            paths.push(above);
        }
        paths
    }

    fn children(&self, path: &str) -> Vec<String> {
        let children = self.0.keys().filter(|other| *other != "/" && parent(other) == path);
        children.map(|child| child.rsplit('/').next().unwrap().to_owned()).collect()
    }
}

fn ask(player: &mut Player, model: &Model, (who, tx): (u16, &str), path: &str, request: &Request) -> String {
    let who = if tx.is_empty() { who.to_string() } else { format!("{who}.{tx}") };
    let reply = player.step(&match request {
        Request::Read => format!("{who} read {path}"),
        Request::Directory => format!("{who} directory {path}"),
        Request::GetPerms => format!("{who} get_perms {path}"),
        Request::Write(value) => format!("{who} write {path} {value}"),
        Request::Mkdir => format!("{who} mkdir {path}"),
        Request::Rm => format!("{who} rm {path}"),
        Request::SetPerms(others) => {
            let owner = model.0.get(path).map_or(0, |node| node.owner);
            format!("{who} set_perms {path} {others}{owner}")
        }
    });
    if !matches!(request, Request::Directory) || reply.starts_with('E') {
        return reply;
    }
    // The order of names is no promise.
    let mut names: Vec<&str> = reply.split('|').collect();
    names.sort_unstable();
    names.join("|")
}

fn same(player: &mut Player, model: &Model) {
    for path in model.0.keys() {
        for request in [Request::Read, Request::Directory, Request::GetPerms] {
            let want = model.clone().ask(0, path, &request);
            assert_eq!(ask(player, model, (0, ""), path, &request), want, "{path} {request:?}");
        }
    }
    assert_eq!(player.store().check(), Ok(()));
}

fn run(steps: &[Step]) {
    let mut player = Player::new();
    let mut model = Model::new();
    let mut open: BTreeMap<u16, Transaction> = BTreeMap::new();
    let mut changes: Vec<String> = Vec::new();
    assert_eq!(player.step("0 set_perms / b0"), "OK");
    for step in steps {
        match step {
            Step::Start(who) if !open.contains_key(who) => {
                let id = player.step(&format!("{who} transaction_start ''"));
                open.insert(
                    *who,
                    Transaction {
                        id,
                        since: None,
                        view: model.clone(),
                        asked: Vec::new(),
                        about: Vec::new(),
                    },
                );
            }
            Step::End(who, commit) => {
                let Some(tx) = open.remove(who) else { continue };
                let arg = if *commit { "T" } else { "F" };
                let reply = player.step(&format!("{who}.{} transaction_end {arg}", tx.id));
                if reply == "EAGAIN" {
                    let others = &changes[tx.since.unwrap()..];
                    let company = |path: &String| others.iter().any(|other| related(other, path));
                    assert!(*commit && tx.about.iter().any(company), "conflict with nobody: {tx:?}");
                    continue;
                }
                assert_eq!(reply, "OK");
                for (path, request, answer) in tx.asked.iter().filter(|_| *commit) {
                    changes.extend(model.about(path));
                    assert_eq!(model.ask(*who, path, request), *answer, "{path} {request:?} at the commit");
                }
                same(&mut player, &model);
            }
            Step::Ask { who, inside, path, request } => match open.get_mut(who).filter(|_| *inside) {
                Some(tx) => {
                    if tx.since.is_none() {
                        (tx.since, tx.view) = (Some(changes.len()), model.clone());
                    }
                    tx.about.extend(tx.view.about(path));
                    let answer = ask(&mut player, &tx.view, (*who, &tx.id), path, request);
                    assert_eq!(
                        answer,
                        tx.view.ask(*who, path, request),
                        "{who} in {}: {path} {request:?}",
                        tx.id
                    );
                    tx.asked.push((path.clone(), request.clone(), answer));
                }
                None => {
                    changes.extend(model.about(path));
                    let answer = ask(&mut player, &model, (*who, ""), path, request);
                    assert_eq!(answer, model.ask(*who, path, request), "{who}: {path} {request:?}");
                }
            },
            Step::Start(_) => {}
        }
    }
    same(&mut player, &model);
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = || prop::sample::select(vec![0u16, 5, 6]);
    let path = prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4);
    let path =
        prop_oneof![20 => path.prop_map(|names| format!("/{}", names.join("/"))), 1 => Just("/".to_owned())];
    let request = prop_oneof![
        Just(Request::Read),
        Just(Request::Directory),
        Just(Request::GetPerms),
        any::<u8>().prop_map(Request::Write),
        any::<u8>().prop_map(Request::Write),
        Just(Request::Mkdir),
        Just(Request::Rm),
        prop::sample::select(vec!['n', 'r', 'w', 'b', 'b']).prop_map(Request::SetPerms),
    ];
    let ask = (who(), any::<bool>(), path, request).prop_map(|(who, inside, path, request)| Step::Ask {
        who,
        inside,
        path,
        request,
    });
    let step = prop_oneof![
        1 => who().prop_map(Step::Start),
        1 => (who(), prop::bool::weighted(0.9)).prop_map(|(who, commit)| Step::End(who, commit)),
        8 => ask,
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_behaves_as_the_model(steps in steps()) {
        run(&steps);
    }
}
