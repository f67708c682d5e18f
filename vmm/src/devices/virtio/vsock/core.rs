//! Between the queues and the connections.

use std::sync::Arc;

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use super::QUEUE_SIZE;
use super::header::{HEADER_LEN, Header};
use super::muxer::Muxer;
use super::payload::Room;
use crate::devices::virtio::Interrupt;
use crate::devices::virtio::chain::{ChainError, Message, SegmentError};
use crate::devices::virtio::ring::{Ring, RingError};
use crate::devices::virtio::state::QueueProgress;

/// Packets to move before the event loop gets its turn.
const PACKET_BUDGET: usize = 256;

/// Descriptors in one message: a header and, of a Linux guest that sends
/// without copying, one for each page of 64 KiB; the queue itself holds more.
const DESCRIPTORS_MAX: usize = QUEUE_SIZE as usize;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (virtio 1.2, 5.10.6.7).
const EVENT_TRANSPORT_RESET: u32 = 0;

/// The queues make no sense: the device stops and asks for a reset.
#[derive(Debug, Error)]
pub(super) enum QueueError {
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("vsock packet: {0}")]
    Segment(#[from] SegmentError),
}

/// The queues of an active device.
#[derive(Debug)]
pub(super) struct Queues {
    pub(super) receive: Ring,
    pub(super) transmit: Ring,
    pub(super) event: Ring,
    pub(super) interrupt: Arc<Interrupt>,
}

/// What the device, the event loop and handles share, behind one lock.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) muxer: Muxer,
    queues: Option<Queues>,
    /// Nothing is done until the machine goes on.
    paused: bool,
    message: Message,
    /// The guest has to be told that all its connections are gone.
    reset_due: bool,
    /// Written when there is more to transmit than one turn allows.
    transmit_event: Arc<EventFd>,
    reported: bool,
}

impl Core {
    pub(super) fn new(muxer: Muxer, transmit_event: Arc<EventFd>) -> Self {
        Self {
            muxer,
            queues: None,
            paused: false,
            message: Message::default(),
            reset_due: false,
            transmit_event,
            reported: false,
        }
    }

    pub(super) fn activate(&mut self, queues: Queues) {
        self.queues = Some(queues);
        self.pump();
    }

    pub(super) fn reset(&mut self) {
        self.queues = None;
        self.reset_due = false;
        self.muxer.reset();
    }

    /// Ends all connections and tells the guest (after a snapshot, say).
    pub(super) fn reset_transport(&mut self) {
        self.muxer.reset();
        self.reset_due = true;
        self.pump();
    }

    /// Leaves the queues alone until [`Self::resume`].
    pub(super) fn pause(&mut self) {
        self.paused = true;
    }

    /// Does what there is to do since [`Self::pause`].
    pub(super) fn resume(&mut self) {
        self.paused = false;
        self.pump();
    }

    /// How far it is with each of its queues, if it has any.
    pub(super) fn progress(&self) -> Option<Vec<QueueProgress>> {
        let queues = self.queues.as_ref()?;
        let rings = [&queues.receive, &queues.transmit, &queues.event];
        Some(rings.map(Ring::progress).into())
    }

    /// Moves packets both ways until there is nothing to do or no room.
    pub(super) fn pump(&mut self) {
        if self.paused {
            return;
        }
        let Some(mut queues) = self.queues.take() else {
            return;
        };
        match self.try_pump(&mut queues) {
            Ok(()) => self.queues = Some(queues),
            Err(error) => {
                if !self.reported {
                    self.reported = true;
                    eprintln!("virtio vsock device stopped: {error}");
                }
                self.muxer.reset();
                queues.interrupt.device_needs_reset();
            }
        }
    }

    fn try_pump(&mut self, queues: &mut Queues) -> Result<(), QueueError> {
        let reported = self.report_reset(&mut queues.event)?;
        let (mut received, mut transmitted) = (0, 0);
        loop {
            let budget = PACKET_BUDGET.saturating_sub(received + transmitted);
            let more_received = self.fill_receive(&mut queues.receive, budget)?;
            // What the guest sends may have answers, and answers that have
            // gone out may have made room for more of what it sends.
            let more_transmitted = self.drain_transmit(&mut queues.transmit, budget)?;
            if more_received + more_transmitted == 0 {
                break;
            }
            received += more_received;
            transmitted += more_transmitted;
        }
        if received + transmitted >= PACKET_BUDGET {
            // Only fails if it is full, and then the turn comes as well.
            let _ = self.transmit_event.write(1);
        }
        let interrupt = [
            reported && queues.event.needs_interrupt()?,
            received > 0 && queues.receive.needs_interrupt()?,
            transmitted > 0 && queues.transmit.needs_interrupt()?,
        ];
        if interrupt.contains(&true) {
            queues.interrupt.used_buffer();
        }
        Ok(())
    }

    /// Gives the guest packets while there are any, room for them, and budget
    /// left; returns how many.
    fn fill_receive(&mut self, ring: &mut Ring, budget: usize) -> Result<usize, QueueError> {
        let mut count = 0;
        while count < budget && self.muxer.has_packet() {
            let Some(chain) = ring.pop()? else {
                if ring.enable_notification()? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            self.message.fill(chain, DESCRIPTORS_MAX)?;
            let room = Room::new(&self.message.writable, ring.memory())?;
            let Some(header) = self.muxer.next_packet(room) else {
                ring.undo_pop();
                break;
            };
            self.message
                .writable
                .write(ring.memory(), 0, &header.to_bytes())?;
            ring.push_used(head, HEADER_LEN as u32 + header.len)?;
            count += 1;
        }
        Ok(count)
    }

    /// Takes packets from the guest while there are any, answers to them can
    /// be kept, and budget is left; returns how many.
    fn drain_transmit(&mut self, ring: &mut Ring, budget: usize) -> Result<usize, QueueError> {
        let mut count = 0;
        ring.disable_notification()?;
        // Without room for answers or budget there is no point in being
        // notified: the receive queue or the loop's next turn leads here again.
        while count < budget && self.muxer.can_take_packet() {
            let Some(chain) = ring.pop()? else {
                if ring.enable_notification()? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            self.message.fill(chain, DESCRIPTORS_MAX)?;
            let mut bytes = [0; HEADER_LEN];
            self.message.readable.read(ring.memory(), 0, &mut bytes)?;
            let header = Header::from_bytes(&bytes);
            self.muxer
                .on_guest_packet(&header, &self.message.readable, ring.memory());
            ring.push_used(head, 0)?;
            count += 1;
        }
        Ok(count)
    }

    /// Tells the guest that its connections are gone, if that is due and it
    /// has given room.
    fn report_reset(&mut self, ring: &mut Ring) -> Result<bool, QueueError> {
        while self.reset_due {
            if let Some(chain) = ring.pop()? {
                let head = chain.head_index();
                self.message.fill(chain, DESCRIPTORS_MAX)?;
                let event = EVENT_TRANSPORT_RESET.to_le_bytes();
                self.message.writable.write(ring.memory(), 0, &event)?;
                ring.push_used(head, event.len() as u32)?;
                self.reset_due = false;
                return Ok(true);
            }
            if !ring.enable_notification()? {
                break;
            }
        }
        Ok(false)
    }
}
