//! The event loop's view of the device.

use std::sync::{Arc, Mutex};

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::core::Core;
use super::lock;

/// What an event is about: the index of a queue, or this.
const HOST: u32 = 3;

/// Drives a vsock device: to be added to the machine's event manager.
#[derive(Debug)]
pub struct VsockSubscriber {
    core: Arc<Mutex<Core>>,
    queue_events: [Arc<EventFd>; 3],
}

impl VsockSubscriber {
    pub(super) fn new(core: Arc<Mutex<Core>>, queue_events: [Arc<EventFd>; 3]) -> Self {
        Self { core, queue_events }
    }
}

impl MutEventSubscriber for VsockSubscriber {
    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        let mut core = lock(&self.core);
        match self.queue_events.get(events.data() as usize) {
            Some(event) => {
                // Nothing to read: another turn has seen to it already.
                let _ = event.read();
            }
            None => core.muxer.on_host_events(),
        }
        core.pump();
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let queues = self.queue_events.iter().enumerate();
        let queues =
            queues.map(|(index, event)| Events::with_data(&**event, index as u32, EventSet::IN));
        let host = Events::with_data_raw(lock(&self.core).muxer.event_fd(), HOST, EventSet::IN);
        for events in queues.chain([host]) {
            if let Err(error) = ops.add(events) {
                eprintln!("cannot watch the vsock device: {error:?}");
            }
        }
    }
}
