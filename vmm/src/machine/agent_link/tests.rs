use super::*;

const NONCE: [u8; 16] = [7; 16];

fn link() -> AgentLink {
    AgentLink::new(BootNonce::new(NONCE), Arc::new(BootTimer::default())).unwrap()
}

fn hello(secret: &[u8], major: u16) -> Vec<u8> {
    let hello = Hello {
        major,
        minor: 0,
        build: "test".to_owned(),
        secret: secret.to_vec(),
    };
    Frame::new(0, Message::Hello(hello)).to_bytes()
}

const RENEWED: [u8; 16] = [9; 16];

fn restored() -> Restored {
    Restored {
        generation: [1; 16],
        entropy: [2; 64],
        wall_clock_ns: 0,
        hostname: "clone".parse().unwrap(),
        nonce: RENEWED,
    }
}

fn restored_link() -> AgentLink {
    let timer = Arc::new(BootTimer::default());
    AgentLink::for_restore(BootNonce::new(NONCE), restored(), timer).unwrap()
}

fn resumed(generation: u8) -> Vec<u8> {
    let resumed = Resumed {
        generation: [generation; 16],
    };
    Frame::new(RESTORED_ID, Message::Resumed(resumed)).to_bytes()
}

fn message(bytes: &[u8]) -> Option<Message> {
    let mut decoder = Decoder::new();
    decoder.push(bytes);
    let message = decoder.next_frame().unwrap()?.message;
    assert_eq!(decoder.pending(), 0);
    Some(message)
}

fn goodbye() -> Vec<u8> {
    let goodbye = Goodbye {
        reason: GoodbyeReason::Requested,
    };
    Frame::new(0, Message::Goodbye(goodbye)).to_bytes()
}

#[test]
fn hello_in_pieces_makes_ready() {
    let link = link();
    let mut call = link.call();
    let bytes = hello(&NONCE, MAJOR);
    for byte in bytes {
        assert!(!link.is_ready());
        call.receive(&[byte]).unwrap();
    }
    assert!(link.is_ready());
    assert!(link.goodbye().is_none());
    assert!(!call.is_over());
    call.receive(&goodbye()).unwrap();
    assert!(call.is_over());
    assert_eq!(link.goodbye(), Some(GoodbyeReason::Requested));
}

#[test]
fn a_wrong_nonce_changes_nothing() {
    let link = link();
    for secret in [&[8; 16][..], b"", &[7; 15]] {
        assert!(matches!(
            link.call().receive(&hello(secret, MAJOR)),
            Err(CallError::Nonce)
        ));
    }
    assert!(!link.is_ready());
    assert!(link.refused().unwrap().contains("nonce"));
}

#[test]
fn goodbye_needs_a_hello_first() {
    let link = link();
    assert!(matches!(
        link.call().receive(&goodbye()),
        Err(CallError::NoHello)
    ));
    assert!(link.goodbye().is_none());
}

#[test]
fn an_agent_of_another_generation_is_named() {
    let link = link();
    let mut call = link.call();
    assert!(matches!(
        call.receive(&hello(&NONCE, 99)),
        Err(CallError::Version(99))
    ));
    assert!(link.incompatible().unwrap().contains("99"));
}

#[test]
fn garbage_and_endless_frames_are_refused() {
    let link = link();
    assert!(link.call().receive(&[0xff; 64]).is_err());
    let mut call = link.call();
    let mut endless = (1u32 << 19).to_le_bytes().to_vec();
    endless.resize(MAX_PENDING + 1, 0);
    assert!(matches!(call.receive(&endless), Err(CallError::TooLarge)));
}

#[test]
fn a_sign_of_life_needs_a_hello_first() {
    let link = link();
    let ping = Frame::new(7, Message::Ping).to_bytes();
    assert!(link.call().receive(&ping).is_err());
    let mut call = link.call();
    assert!(call.receive(&hello(&NONCE, MAJOR)).unwrap().is_empty());
    let done = Frame::new(7, Message::Done).to_bytes();
    assert_eq!(call.receive(&ping).unwrap(), done);
}

#[test]
fn a_restored_agent_is_told_and_ready_when_it_has_resumed() {
    let link = restored_link();
    let mut call = link.call();
    let told = message(&call.receive(&hello(&NONCE, MAJOR)).unwrap());
    let Some(Message::Restored(told)) = told else {
        panic!("{told:?}");
    };
    assert_ne!(told.wall_clock_ns, 0);
    let expected = Restored {
        wall_clock_ns: told.wall_clock_ns,
        ..restored()
    };
    assert_eq!(told, expected);
    assert!(!link.is_ready());
    assert!(call.receive(&resumed(1)).unwrap().is_empty());
    assert!(link.is_ready());
    assert_eq!(link.nonce().bytes(), &RENEWED);
    // The call goes on as any.
    call.receive(&goodbye()).unwrap();
    assert_eq!(link.goodbye(), Some(GoodbyeReason::Requested));
}

#[test]
fn the_time_is_told_where_the_agent_said_hello_last() {
    let link = restored_link();
    let lines = [HostConnection(1), HostConnection(2)];
    assert_eq!(link.tell_time(), None);
    let mut call = link.call();
    call.receive(&hello(&NONCE, MAJOR)).unwrap();
    assert!(call.is_agent());
    link.is_on(lines[0]);
    // It is not yet this guest's, and hears the time in any case.
    assert_eq!(link.tell_time(), None);
    call.receive(&resumed(1)).unwrap();
    link.is_on(lines[1]);
    link.has_left(lines[0]);
    let before = wall_clock_ns();
    let (line, bytes) = link.tell_time().unwrap();
    assert_eq!(line, lines[1]);
    let Some(Message::Clock(clock)) = message(&bytes) else {
        panic!("{bytes:?}");
    };
    assert!(clock.wall_clock_ns >= before);
    link.has_left(lines[1]);
    assert_eq!(link.tell_time(), None);
}

#[test]
fn after_the_restore_the_new_nonce_counts() {
    let link = restored_link();
    let mut call = link.call();
    call.receive(&hello(&NONCE, MAJOR)).unwrap();
    call.receive(&resumed(1)).unwrap();
    assert!(matches!(
        link.call().receive(&hello(&NONCE, MAJOR)),
        Err(CallError::Nonce)
    ));
    let mut again = link.call();
    assert!(again.receive(&hello(&RENEWED, MAJOR)).unwrap().is_empty());
    // It has resumed already.
    assert!(again.receive(&resumed(1)).is_err());
}

#[test]
fn a_restored_agent_whose_call_breaks_off_is_told_again() {
    let link = restored_link();
    for secret in [NONCE, NONCE, RENEWED] {
        let told = link.call().receive(&hello(&secret, MAJOR)).unwrap();
        assert!(matches!(message(&told), Some(Message::Restored(_))));
        assert!(!link.is_ready());
    }
    let mut call = link.call();
    call.receive(&hello(&RENEWED, MAJOR)).unwrap();
    call.receive(&resumed(1)).unwrap();
    assert!(link.is_ready());
}

#[test]
fn only_the_generation_that_was_told_makes_ready() {
    let link = restored_link();
    for secret in [&[8; 16][..], b""] {
        assert!(matches!(
            link.call().receive(&hello(secret, MAJOR)),
            Err(CallError::Nonce)
        ));
    }
    assert!(matches!(
        link.call().receive(&resumed(1)),
        Err(CallError::NoHello)
    ));
    let mut call = link.call();
    call.receive(&hello(&NONCE, MAJOR)).unwrap();
    assert!(matches!(
        call.receive(&resumed(2)),
        Err(CallError::Generation)
    ));
    assert!(!link.is_ready());
    assert_eq!(link.nonce().bytes(), &NONCE);
}

#[test]
fn a_guest_that_booted_cannot_resume() {
    let link = link();
    let mut call = link.call();
    call.receive(&hello(&NONCE, MAJOR)).unwrap();
    assert!(matches!(
        call.receive(&resumed(1)),
        Err(CallError::Unexpected(81))
    ));
}
