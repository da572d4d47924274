use proptest::prelude::*;
use xen_abi::io::xenbus::XenbusState as State;

use crate::xenbus::{Action, Backend, Event, Phase};

const PHASES: [Phase; 10] = [
    Phase::Initialising,
    Phase::InitWait,
    Phase::Connecting,
    Phase::Connected,
    Phase::Reconfiguring,
    Phase::Closing,
    Phase::Abandoned,
    Phase::Failed,
    Phase::Closed,
    Phase::Gone,
];

fn events() -> Vec<Event> {
    let fronts = (0..10).map(|state| Event::Frontend(State(state)));
    let others = [
        Event::Start,
        Event::Connected,
        Event::Failed,
        Event::Reconfigure,
        Event::Reconfigured,
        Event::Online(true),
        Event::Online(false),
        Event::Force,
        Event::Removed,
    ];
    fronts.chain(others).collect()
}

/// Actions as letters and digits: a digit writes that state; A advertise, B abandon, C connect, D disconnect, E error,
/// F finish, M reconfigure, R remove.
fn letters(actions: &[Action]) -> String {
    let letter = |action: &Action| match action {
        Action::Write(state) => char::from_digit(state.0, 10).unwrap(),
        Action::Advertise => 'A',
        Action::Abandon => 'B',
        Action::Finish => 'F',
        Action::Connect => 'C',
        Action::Disconnect => 'D',
        Action::WriteError => 'E',
        Action::Reconfigure => 'M',
        Action::Remove => 'R',
    };
    actions.iter().map(letter).collect()
}

/// For each phase: what each event does, as actions; `.` is nothing. Columns: the front-end's states 0 to 8 and a
/// senseless 9, start, connected, failed, reconfigure, reconfigured, online, offline, force,
/// removed.
#[rustfmt::skip]
const WHILE_ONLINE: [(Phase, [&str; 19]); 10] = [
    (Phase::Initialising,  [".", ".", ".", ".", ".", ".", ".", ".", ".", ".", "A2", ".", ".", "M", ".", ".", "6R", "6R", "6R"]),
    (Phase::InitWait,      [".", ".", ".", "C", "C", "5", "6", ".", ".", ".", ".", ".", ".", "M", ".", ".", "6R", "6R", "6R"]),
    (Phase::Connecting,    ["D6", "D6A2", ".", ".", ".", "5", "FD6", ".", ".", ".", ".", "4", "DE5", "M", ".", ".", "5", "B5", "D6R"]),
    (Phase::Connected,     ["D6", "D6A2", ".", ".", ".", "5", "FD6", ".", ".", ".", ".", ".", "DE5", "7M", ".", ".", "5", "B5", "D6R"]),
    (Phase::Reconfiguring, ["D6", "D6A2", ".", ".", ".", "5", "FD6", ".", ".", ".", ".", ".", "DE5", "M", "84", ".", "5", "B5", "D6R"]),
    (Phase::Closing,       ["D6", "D6A2", ".", ".", ".", ".", "FD6", ".", ".", ".", ".", ".", "DE5", "M", ".", ".", ".", "B5", "D6R"]),
    (Phase::Abandoned,     ["D6", "D6A2", ".", ".", ".", ".", "FD6", ".", ".", ".", ".", ".", "DE5", "M", ".", ".", ".", ".", "D6R"]),
    (Phase::Failed,        ["6", "6A2", ".", ".", ".", ".", "6", ".", ".", ".", ".", ".", ".", "M", ".", ".", ".", "6R", "6R"]),
    (Phase::Closed,        [".", "A2", ".", "A2C", "A2C", ".", ".", ".", ".", ".", ".", ".", ".", "M", ".", ".", "R", "R", "R"]),
    (Phase::Gone,          [".", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", "."]),
];

#[test]
fn every_event_in_every_phase() {
    for (phase, row) in WHILE_ONLINE {
        for (event, wanted) in events().into_iter().zip(row) {
            let (_, actions) = Backend { phase, online: true }.step(event);
            assert_eq!(letters(&actions), wanted.replace('.', ""), "{phase:?} {event:?}");
        }
    }
    assert_eq!(WHILE_ONLINE.map(|(phase, _)| phase), PHASES);
}

#[test]
fn offline_the_end_is_the_end() {
    for (phase, row) in WHILE_ONLINE {
        for (event, online) in events().into_iter().zip(row) {
            let (after, actions) = Backend { phase, online: false }.step(event);
            let told = letters(&actions);
            match event {
                Event::Frontend(_) if phase == Phase::Closed => assert_eq!(told, ""),
                Event::Frontend(_) if online.contains('6') => {
                    let (until, _) = online.split_at(online.find('6').unwrap() + 1);
                    assert_eq!(
                        (told, after.phase),
                        (format!("{until}R"), Phase::Gone),
                        "{phase:?} {event:?}"
                    );
                }
                _ => assert_eq!(told, online.replace('.', ""), "{phase:?} {event:?}"),
            }
        }
    }
}

#[test]
fn the_lives_of_devices() {
    let front = |state| Event::Frontend(State(state));
    let lives: [(&str, Vec<Event>, &str, Phase); 8] = [
        (
            "blkfront",
            vec![Event::Start, front(1), front(3), Event::Connected, front(4)],
            "A2C4",
            Phase::Connected,
        ),
        (
            "unloaded and loaded again",
            vec![
                Event::Start,
                front(4),
                Event::Connected,
                front(5),
                front(6),
                front(1),
                front(4),
                Event::Connected,
            ],
            "A2C45FD6A2C4",
            Phase::Connected,
        ),
        (
            "detached while in use",
            vec![
                Event::Start,
                front(4),
                Event::Connected,
                Event::Online(false),
                front(5),
                front(4),
                front(6),
            ],
            "A2C45FD6R",
            Phase::Gone,
        ),
        (
            "does not connect, tries again",
            vec![
                Event::Start,
                front(3),
                Event::Failed,
                front(3),
                front(5),
                front(6),
                front(1),
                front(3),
                Event::Connected,
            ],
            "A2CDE56A2C4",
            Phase::Connected,
        ),
        (
            "by force while in use",
            vec![
                Event::Start,
                front(4),
                Event::Connected,
                Event::Force,
                front(4),
                Event::Online(true),
                front(6),
            ],
            "A2C4B5FD6R",
            Phase::Gone,
        ),
        (
            "by force, and nobody notices",
            vec![Event::Start, front(4), Event::Connected, Event::Force, Event::Force, Event::Removed],
            "A2C4B5D6R",
            Phase::Gone,
        ),
        ("never wanted", vec![Event::Start, Event::Online(false)], "A26R", Phase::Gone),
        (
            "another disc",
            vec![Event::Start, front(3), Event::Connected, Event::Reconfigure, front(4), Event::Reconfigured],
            "A2C47M84",
            Phase::Connected,
        ),
    ];
    for (name, events, wanted, end) in lives {
        let mut backend = Backend::default();
        let mut told = String::new();
        for event in events {
            let (next, actions) = backend.step(event);
            backend = next;
            told += &letters(&actions);
        }
        assert_eq!((told.as_str(), backend.phase), (wanted, end), "{name}");
    }
}

proptest! {
    /// In any life: the device is connected and disconnected in turn, the state node says where we are, nothing
    /// follows the removal, and the same front-end state twice is no event.
    #[test]
    fn any_life_is_orderly(lived in prop::collection::vec(prop::sample::select(events()), 1..80)) {
        let mut backend = Backend::default();
        let (mut live, mut state, mut gone) = (false, State::INITIALISING, false);
        for event in lived {
            let (next, actions) = backend.step(event);
            for action in actions {
                prop_assert!(!gone, "{action:?} after the end");
                match action {
                    Action::Write(new) => state = new,
                    Action::Connect => {
                        prop_assert!(!live && next.online);
                        live = true;
                    }
                    Action::Disconnect => {
                        prop_assert!(live);
                        live = false;
                    }
                    Action::Finish | Action::Abandon => prop_assert!(live),
                    Action::Remove => gone = true,
                    Action::Advertise | Action::WriteError | Action::Reconfigure => {}
                }
            }
            prop_assert_eq!((live, state, gone), (next.phase.is_live(), next.phase.state(), next.phase == Phase::Gone));
            if matches!(event, Event::Frontend(_)) {
                let (same, again) = next.step(event);
                prop_assert!(same == next && again.is_empty(), "{:?} twice: {:?}", event, again);
            }
            backend = next;
        }
    }
}
