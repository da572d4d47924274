//! The life of a device's back-end as a state machine (`public/io/xenbus.h`): what it writes and does when the
//! front-end, the toolstack or the device itself moves.
//!
//! Pure: [`Backend::step`] takes an event and answers with what is to be done, in order. The caller reads the
//! front-end's `state` node, writes ours, and calls the device. It may report a front-end's state as often as it
//! likes; a state that changes nothing does nothing.

use xen_abi::io::xenbus::XenbusState;

/// Where the back-end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Not offered yet.
    Initialising,
    /// Offered; the front-end has not written what is needed to connect.
    InitWait,
    /// The device is being connected; the front-end still reads InitWait.
    Connecting,
    /// At work.
    Connected,
    /// At work, with another medium soon.
    Reconfiguring,
    /// Asked to end and still at work: the front-end finishes what it has and closes.
    Closing,
    /// Taken away by force: whatever the guest still asks of it fails, and the front-end is asked to close.
    Abandoned,
    /// The device has failed and is disconnected; the front-end is asked to close.
    Failed,
    /// Ended, and ready to begin again.
    Closed,
    /// Removed.
    Gone,
}

impl Phase {
    /// Whether the device is connected, or about to be.
    #[must_use]
    pub const fn is_live(self) -> bool {
        matches!(
            self,
            Phase::Connecting | Phase::Connected | Phase::Reconfiguring | Phase::Closing | Phase::Abandoned
        )
    }

    /// What the `state` node says.
    #[must_use]
    pub const fn state(self) -> XenbusState {
        match self {
            Phase::Initialising => XenbusState::INITIALISING,
            Phase::InitWait | Phase::Connecting => XenbusState::INIT_WAIT,
            Phase::Connected => XenbusState::CONNECTED,
            Phase::Reconfiguring => XenbusState::RECONFIGURING,
            Phase::Closing | Phase::Abandoned | Phase::Failed => XenbusState::CLOSING,
            Phase::Closed | Phase::Gone => XenbusState::CLOSED,
        }
    }
}

/// What happens to a back-end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The device exists: offer it.
    Start,
    /// The front-end's `state` node reads so; `UNKNOWN` when it is missing or makes no sense.
    Frontend(XenbusState),
    /// [`Action::Connect`] has been done.
    Connected,
    /// [`Action::Connect`] has failed, or the device cannot go on.
    Failed,
    /// Another medium is to be put in, or the one there taken out.
    Reconfigure,
    /// [`Action::Reconfigure`] has been done, with or without success.
    Reconfigured,
    /// The toolstack wants the device to stay (`online=1`) or to go when the front-end lets it go (`online=0`).
    Online(bool),
    /// The toolstack wants the device gone at once.
    Force,
    /// Somebody has removed our nodes, or nobody waits for the front-end any longer.
    Removed,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write the nodes that offer the device: features and limits.
    Advertise,
    /// Write our `state` node.
    Write(XenbusState),
    /// Read the front-end's directory and connect the device; then report [`Event::Connected`] or [`Event::Failed`].
    Connect,
    /// Answer what the front-end had asked when it closed.
    Finish,
    /// Let go of the host's end; from now on all requests fail.
    Abandon,
    /// Disconnect the device.
    Disconnect,
    /// Write the reason to our `error` node.
    WriteError,
    /// Change the medium; then report [`Event::Reconfigured`].
    Reconfigure,
    /// Remove both ends' nodes and forget the device.
    Remove,
}

/// One back-end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Where it is.
    pub phase: Phase,
    /// Whether it stays when the front-end closes.
    pub online: bool,
}

impl Default for Backend {
    fn default() -> Self {
        Backend { phase: Phase::Initialising, online: true }
    }
}

/// What the front-end's state means to us.
enum Front {
    /// Nothing: not there yet, or on its way.
    Waits,
    /// It begins, perhaps anew.
    Begins,
    /// It has written what is needed to connect.
    Ready,
    Closes,
    /// It has closed, or its nodes are gone.
    Ended,
}

impl Front {
    fn of(state: XenbusState) -> Front {
        match state {
            XenbusState::INITIALISING => Front::Begins,
            XenbusState::INITIALISED | XenbusState::CONNECTED => Front::Ready,
            XenbusState::CLOSING => Front::Closes,
            XenbusState::CLOSED | XenbusState::UNKNOWN => Front::Ended,
            _ => Front::Waits,
        }
    }
}

impl Backend {
    /// What follows from an event: the back-end afterwards, and what is to be done, in order.
    #[must_use]
    pub fn step(self, event: Event) -> (Backend, Vec<Action>) {
        match (event, self.phase) {
            (_, Phase::Gone) => self.stay(),
            (Event::Start, Phase::Initialising) => self.offer(),
            (Event::Frontend(state), _) => self.frontend(state),
            (Event::Connected, Phase::Connecting) => self.tell(Phase::Connected),
            (Event::Failed, phase) if phase.is_live() => self.fail(),
            (Event::Reconfigure, Phase::Connected) => {
                self.tell(Phase::Reconfiguring).then(&[Action::Reconfigure])
            }
            (Event::Reconfigure, _) => self.stay().then(&[Action::Reconfigure]),
            (Event::Reconfigured, Phase::Reconfiguring) => {
                let done = Action::Write(XenbusState::RECONFIGURED);
                (self, vec![done]).and(|backend| backend.tell(Phase::Connected))
            }
            (Event::Online(_), Phase::Abandoned) => self.stay(),
            (Event::Online(online), _) => Backend { online, ..self }.toolstack(),
            (Event::Force, Phase::Abandoned) => self.stay(),
            (Event::Force, phase) if phase.is_live() => self.abandon(),
            (Event::Force | Event::Removed, _) => Backend { online: false, ..self }.end(),
            (Event::Start | Event::Connected | Event::Failed | Event::Reconfigured, _) => self.stay(),
        }
    }

    fn frontend(self, state: XenbusState) -> (Backend, Vec<Action>) {
        match (Front::of(state), self.phase) {
            (Front::Ready, Phase::InitWait) => self.connect(),
            // It did not wait for us to offer the device again.
            (Front::Ready, Phase::Closed) if self.online => self.offer().and(Backend::connect),
            (Front::Begins, Phase::Closed) if self.online => self.offer(),
            // It begins anew without having closed: a crash, or a kexec.
            (Front::Begins, phase) if phase.is_live() || phase == Phase::Failed => self
                .end()
                .and(|backend| if backend.phase == Phase::Closed { backend.offer() } else { backend.stay() }),
            (Front::Closes, Phase::InitWait) => self.tell(Phase::Failed),
            (Front::Closes, Phase::Connecting | Phase::Connected | Phase::Reconfiguring) => {
                self.tell(Phase::Closing)
            }
            // The toolstack writes the front-end's nodes when it likes.
            (Front::Ended, Phase::InitWait) if state == XenbusState::UNKNOWN => self.stay(),
            (Front::Ended, phase)
                if phase == Phase::InitWait || phase == Phase::Failed || phase.is_live() =>
            {
                let finish = state == XenbusState::CLOSED && phase.is_live();
                (self, if finish { vec![Action::Finish] } else { Vec::new() }).and(Backend::end)
            }
            _ => self.stay(),
        }
    }

    /// `online` has been written.
    fn toolstack(self) -> (Backend, Vec<Action>) {
        match self.phase {
            _ if self.online => self.stay(),
            Phase::Connecting | Phase::Connected | Phase::Reconfiguring => self.tell(Phase::Closing),
            // There is nobody to wait for.
            Phase::Initialising | Phase::InitWait | Phase::Closed => self.end(),
            Phase::Closing | Phase::Abandoned | Phase::Failed | Phase::Gone => self.stay(),
        }
    }

    fn stay(self) -> (Backend, Vec<Action>) {
        (self, Vec::new())
    }

    /// Another phase, told to the front-end.
    fn tell(self, phase: Phase) -> (Backend, Vec<Action>) {
        (Backend { phase, ..self }, vec![Action::Write(phase.state())])
    }

    fn offer(self) -> (Backend, Vec<Action>) {
        (self, vec![Action::Advertise]).and(|backend| backend.tell(Phase::InitWait))
    }

    fn connect(self) -> (Backend, Vec<Action>) {
        (Backend { phase: Phase::Connecting, ..self }, vec![Action::Connect])
    }

    /// The device cannot go on: the front-end is asked to close.
    fn fail(self) -> (Backend, Vec<Action>) {
        let actions = vec![Action::Disconnect, Action::WriteError];
        (self, actions).and(|backend| backend.tell(Phase::Failed))
    }

    /// The host's end goes, the front-end is asked to close.
    fn abandon(self) -> (Backend, Vec<Action>) {
        (Backend { online: false, ..self }, vec![Action::Abandon])
            .and(|backend| backend.tell(Phase::Abandoned))
    }

    /// All is over for now, or for good.
    fn end(self) -> (Backend, Vec<Action>) {
        let mut actions = Vec::new();
        if self.phase.is_live() {
            actions.push(Action::Disconnect);
        }
        if self.phase != Phase::Closed {
            actions.push(Action::Write(XenbusState::CLOSED));
        }
        if !self.online {
            actions.push(Action::Remove);
        }
        let phase = if self.online { Phase::Closed } else { Phase::Gone };
        (Backend { phase, ..self }, actions)
    }
}

/// Steps one after the other.
trait Then {
    fn and(self, next: impl FnOnce(Backend) -> (Backend, Vec<Action>)) -> Self;
    fn then(self, actions: &[Action]) -> Self;
}

impl Then for (Backend, Vec<Action>) {
    fn and(self, next: impl FnOnce(Backend) -> (Backend, Vec<Action>)) -> Self {
        let (backend, mut actions) = self;
        let (backend, more) = next(backend);
        actions.extend(more);
        (backend, actions)
    }

    fn then(mut self, actions: &[Action]) -> Self {
        self.1.extend(actions);
        self
    }
}
