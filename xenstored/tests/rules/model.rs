//! Random requests of three connections, with transactions, quotas, watches and domains that die, against a model so
//! simple that it is obviously right.
//!
//! A transaction that commits must have answered as if all its requests had been made at the moment of its commit. One
//! that fails must have had company: a change at, above or below one of its paths after it was first asked about. What is
//! asked twice is answered the same, as long as the transaction changes nothing itself.

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
    SetPerms(char, u16),
}

impl Request {
    fn writes(&self) -> bool {
        matches!(self, Self::Write(_) | Self::Mkdir | Self::Rm | Self::SetPerms(..))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Start(u16),
    End(u16, bool),
    /// The domain dies, and another one with its number comes.
    Reborn(u16),
    Ask {
        who: u16,
        inside: bool,
        path: String,
        request: Request,
    },
}

#[derive(Debug)]
struct Transaction {
    id: String,
    asked: Vec<(String, Request, String)>,
    /// What its requests were about, and how many changes there had been before the first of them.
    about: BTreeMap<String, usize>,
    /// Answers since its last own change.
    answers: BTreeMap<String, String>,
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

    fn owned(&self, who: u16) -> usize {
        self.0.values().filter(|node| node.owner == who).count()
    }

    /// Whether a guest would own too many nodes after this.
    fn over_quota(&self, who: u16, path: &str, request: &Request) -> bool {
        let creates = matches!(request, Request::Write(_) | Request::Mkdir) && !self.0.contains_key(path);
        who != 0 && creates && self.owned(who) + self.about(path).len() > NODES
    }

    /// What watches hear of a request that would be answered so.
    fn event(&self, path: &str, request: &Request, answer: &str) -> Option<String> {
        let exists = self.0.contains_key(path);
        let changes = match request {
            Request::Write(_) | Request::SetPerms(..) => true,
            Request::Mkdir => !exists,
            Request::Rm => exists,
            Request::Read | Request::Directory | Request::GetPerms => false,
        };
        (changes && answer == "OK").then(|| path.to_owned())
    }

    /// The nodes of a domain go, and what is below.
    fn bury(&mut self, domid: u16) {
        let tops: Vec<String> =
            self.0.iter().filter(|(_, node)| node.owner == domid).map(|(path, _)| path.clone()).collect();
        for top in tops.iter().filter(|top| *top != "/") {
            self.0.retain(|other, _| other != top && !other.starts_with(&format!("{top}/")));
        }
        if let Some(root) = self.0.get_mut("/").filter(|root| root.owner == domid) {
            (root.owner, root.others) = (0, 'n');
        }
    }

    /// The answer, and what has to be hidden is hidden.
    fn ask(&mut self, who: u16, path: &str, request: &Request) -> String {
        let writes = request.writes();
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
            Request::SetPerms(..) if who != 0 && self.0[path].owner != who => "EACCES".into(),
            Request::SetPerms(_, owner) if who != 0 && *owner != who => "EPERM".into(),
            Request::SetPerms(others, owner) => {
                let node = self.0.get_mut(path).unwrap();
                (node.others, node.owner) = (*others, *owner);
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

/// The answer, and the paths that the watch on `/` hears of.
fn ask(player: &mut Player, (who, tx): (u16, &str), path: &str, request: &Request) -> (String, Vec<String>) {
    let who = if tx.is_empty() { who.to_string() } else { format!("{who}.{tx}") };
    let reply = player.step(&match request {
        Request::Read => format!("{who} read {path}"),
        Request::Directory => format!("{who} directory {path}"),
        Request::GetPerms => format!("{who} get_perms {path}"),
        Request::Write(value) => format!("{who} write {path} {value}"),
        Request::Mkdir => format!("{who} mkdir {path}"),
        Request::Rm => format!("{who} rm {path}"),
        Request::SetPerms(others, owner) => format!("{who} set_perms {path} {others}{owner}"),
    });
    let (reply, events) = heard(&reply);
    if !matches!(request, Request::Directory) || reply.starts_with('E') {
        return (reply, events);
    }
    // The order of names is no promise.
    let mut names: Vec<&str> = reply.split('|').collect();
    names.sort_unstable();
    (names.join("|"), events)
}

fn heard(reply: &str) -> (String, Vec<String>) {
    let mut parts = reply.split(" ! ");
    let reply = parts.next().unwrap().to_owned();
    let path =
        |event: &str| event.strip_prefix("w ").and_then(|event| event.strip_suffix(" t")).map(str::to_owned);
    (reply, parts.filter_map(path).collect())
}

fn same(player: &mut Player, model: &Model) {
    for path in model.0.keys() {
        for request in [Request::Read, Request::Directory, Request::GetPerms] {
            let want = model.clone().ask(0, path, &request);
            assert_eq!(ask(player, (0, ""), path, &request).0, want, "{path} {request:?}");
        }
    }
    assert_eq!(player.store().check(), Ok(()));
}

/// A store with two guests and a client that watches everything, its model, open transactions, changed paths.
struct Run {
    player: Player,
    model: Model,
    open: BTreeMap<u16, Transaction>,
    changes: Vec<String>,
}

impl Run {
    fn new() -> Self {
        let mut player = Player::new();
        player.patient = true;
        for guest in GUESTS {
            assert_eq!(player.step(&format!("{guest} get_feature ''")), "15");
            assert_eq!(player.step(&format!("0 set_quota {guest} nodes {NODES}")), "OK");
        }
        assert_eq!(player.step("0 set_perms / b0"), "OK");
        assert_eq!(player.step("w watch / t"), "OK ! w / t");
        Self { player, model: Model::new(), open: BTreeMap::new(), changes: Vec::new() }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Start(who) if !self.open.contains_key(who) => {
                let id = heard(&self.player.step(&format!("{who} transaction_start ''"))).0;
                let (asked, about, answers) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
                self.open.insert(*who, Transaction { id, asked, about, answers });
            }
            Step::End(who, commit) => {
                if let Some(tx) = self.open.remove(who) {
                    self.end(*who, *commit, &tx);
                }
            }
            Step::Ask { who, inside: true, path, request } if self.open.contains_key(who) => {
                self.ask_inside(*who, path, request);
            }
            Step::Ask { who, path, request, .. } => self.ask(*who, path, request),
            Step::Reborn(who) if self.open.is_empty() => {
                assert_eq!(heard(&self.player.step(&format!("0 release {who}"))).0, "OK");
                assert_eq!(heard(&self.player.step(&format!("{who} get_feature ''"))).0, "15");
                assert_eq!(self.player.step(&format!("0 set_quota {who} nodes {NODES}")), "OK");
                self.model.bury(*who);
                same(&mut self.player, &self.model);
            }
            Step::Start(_) | Step::Reborn(_) => {}
        }
    }

    fn ask(&mut self, who: u16, path: &str, request: &Request) {
        self.changes.extend(self.model.about(path));
        let (answer, events) = ask(&mut self.player, (who, ""), path, request);
        let full = self.model.over_quota(who, path, request);
        let before = self.model.clone();
        let mut want = self.model.ask(who, path, request);
        if full && want == "OK" {
            (self.model, want) = (before.clone(), "ENOSPC".into());
        }
        assert_eq!(answer, want, "{who}: {path} {request:?}");
        assert_eq!(events, Vec::from_iter(before.event(path, request, &answer)), "{who}: {path} {request:?}");
    }

    fn ask_inside(&mut self, who: u16, path: &str, request: &Request) {
        let Some(tx) = self.open.get_mut(&who) else { return };
        tx.about.entry(path.to_owned()).or_insert(self.changes.len());
        let (answer, events) = ask(&mut self.player, (who, &tx.id), path, request);
        assert!(events.is_empty(), "{events:?} before the commit");
        if request.writes() {
            tx.answers.clear();
        } else {
            let before = tx.answers.entry(format!("{path} {request:?}")).or_insert(answer.clone());
            assert_eq!(*before, answer, "{path} {request:?} again");
        }
        tx.asked.push((path.to_owned(), request.clone(), answer));
    }

    fn end(&mut self, who: u16, commit: bool, tx: &Transaction) {
        let arg = if commit { "T" } else { "F" };
        let (reply, events) = heard(&self.player.step(&format!("{who}.{} transaction_end {arg}", tx.id)));
        let spoiled = tx.asked.iter().any(|(.., answer)| answer == "ENOSPC");
        if reply == "EAGAIN" {
            let others = &self.changes;
            let company =
                |(path, since): (&String, &usize)| others[*since..].iter().any(|other| related(other, path));
            assert!(commit && !spoiled && tx.about.iter().any(company), "conflict with nobody: {tx:?}");
        } else if commit && spoiled {
            assert_eq!(reply, "ENOSPC");
        } else if commit {
            self.committed(who, tx, &reply, &events);
        } else {
            assert_eq!(reply, "OK");
        }
        same(&mut self.player, &self.model);
    }

    fn committed(&mut self, who: u16, tx: &Transaction, reply: &str, events: &[String]) {
        let before = self.model.clone();
        let mut want: Vec<String> = Vec::new();
        for (path, request, answer) in &tx.asked {
            self.changes.extend(self.model.about(path));
            want.extend(self.model.event(path, request, answer).filter(|path| !want.contains(path)));
            assert_eq!(self.model.ask(who, path, request), *answer, "{path} {request:?} at the commit");
        }
        // Of what came and went nobody hears.
        want.retain(|path| before.0.contains_key(path) || self.model.0.contains_key(path));
        if reply == "ENOSPC" {
            assert!(who != 0 && self.model.owned(who) > NODES.max(before.owned(who)));
            self.model = before;
        } else {
            assert_eq!((reply, events), ("OK", &*want));
            assert!(who == 0 || self.model.owned(who) <= NODES.max(before.owned(who)));
        }
    }
}

/// The guests, and how many nodes each may own.
const GUESTS: [u16; 2] = [5, 6];
const NODES: usize = 6;

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
        (prop::sample::select(vec!['n', 'r', 'w', 'b', 'b']), who())
            .prop_map(|(others, owner)| Request::SetPerms(others, owner)),
    ];
    let ask = (who(), any::<bool>(), path, request).prop_map(|(who, inside, path, request)| Step::Ask {
        who,
        inside,
        path,
        request,
    });
    let step = prop_oneof![
        2 => who().prop_map(Step::Start),
        2 => (who(), prop::bool::weighted(0.9)).prop_map(|(who, commit)| Step::End(who, commit)),
        12 => ask,
        1 => prop::sample::select(GUESTS.to_vec()).prop_map(Step::Reborn),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_behaves_as_the_model(steps in steps()) {
        let mut run = Run::new();
        for step in &steps {
            run.step(step);
        }
        same(&mut run.player, &run.model);
    }
}
