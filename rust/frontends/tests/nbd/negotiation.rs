//! Options, good and bad, and what is agreed in the end.

use blockcow_frontends::nbd::protocol::{
    BASE_ALLOCATION, EXPORT_NAME_ZEROES, ExportNameReply, handshake, info, option, reply, transmission,
};
use zerocopy::IntoBytes;

use crate::client::{Client, contexts, wanted};
use crate::rig::{Rig, SIZE};

const FIXED: u32 = handshake::FIXED_NEWSTYLE as u32;

#[test]
fn the_old_way_to_name_an_export_with_zeroes_and_without() {
    let rig = Rig::new();
    for (flags, zeroes) in [(FIXED, EXPORT_NAME_ZEROES), (FIXED | 2, 0), (0, EXPORT_NAME_ZEROES), (2, 0)] {
        let mut client = rig.connect();
        client.greet_with(flags);
        client.option(option::EXPORT_NAME, b"disk");
        let about: ExportNameReply = client.receive();
        assert_eq!(about.size.get(), SIZE);
        assert_eq!(client.receive_bytes(zeroes), vec![0; zeroes]);
        assert_eq!(client.read(SIZE - 8, 8), rig.bytes()[SIZE as usize - 8..]);
        client.goodbye();
    }
}

#[test]
fn go_tells_size_flags_and_block_sizes_and_info_does_not_end_the_talk() {
    use transmission as t;
    let rig = Rig::new();
    let mut client = rig.connect();
    client.greet();
    let replies = client.ask(option::INFO, &wanted("disk", &[info::NAME, info::BLOCK_SIZE, info::DESCRIPTION, 77]));
    let flags = t::HAS_FLAGS | t::SEND_FLUSH | t::SEND_FUA | t::SEND_TRIM | t::SEND_WRITE_ZEROES;
    let flags = flags | t::CAN_MULTI_CONN | t::SEND_CACHE | t::SEND_FAST_ZERO;
    let export = [&info::EXPORT.to_be_bytes()[..], &SIZE.to_be_bytes(), &flags.to_be_bytes()].concat();
    let sizes = [1_u32, 4096, 32 << 20].map(u32::to_be_bytes).concat();
    let sizes = [&info::BLOCK_SIZE.to_be_bytes()[..], &sizes].concat();
    let name = [&info::NAME.to_be_bytes()[..], b"disk"].concat();
    let told = [(reply::INFO, export), (reply::INFO, sizes), (reply::INFO, name), (reply::ACK, vec![])];
    assert_eq!(replies, told);

    assert_eq!(
        client.go("still"),
        (SIZE, t::HAS_FLAGS | t::READ_ONLY | t::SEND_FLUSH | t::SEND_FUA | 1 << 8 | 1 << 10)
    );
    client.goodbye();
}

#[test]
fn the_first_export_is_the_default_and_df_comes_with_structured_replies() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.greet();
    client.structured_replies();
    let replies = client.ask(option::INFO, &wanted("", &[info::NAME]));
    assert!(replies.contains(&(reply::INFO, [&info::NAME.to_be_bytes()[..], b"disk"].concat())), "{replies:?}");
    let (size, flags) = client.go("");
    assert_eq!((size, flags & transmission::SEND_DF), (SIZE, transmission::SEND_DF));
    client.goodbye();
}

#[test]
fn list_names_every_export() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.greet();
    let names = client.ask(option::LIST, &[]);
    let server = |name: &str| (reply::SERVER, [&(name.len() as u32).to_be_bytes()[..], name.as_bytes()].concat());
    assert_eq!(names, [server("disk"), server("still"), (reply::ACK, vec![])]);
    client.option(option::ABORT, &[]);
    assert_eq!(client.option_reply(option::ABORT), (reply::ACK, vec![]));
    client.assert_ended();
}

#[test]
fn what_is_refused_has_the_protocols_error_and_the_talk_goes_on() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.greet();
    let set = contexts("disk", &[BASE_ALLOCATION]);
    let long_name = wanted(&"x".repeat(4097), &[]);
    let mut torn = wanted("disk", &[1, 2]);
    torn.pop();
    let not_utf8 = [&4_u32.to_be_bytes()[..], &[0xff; 4], &[0, 0]].concat();
    let cases: &[(u32, &[u8], u32)] = &[
        (0, &[], reply::ERR_UNSUP),
        (4, b"disk", reply::ERR_UNSUP),
        (option::EXTENDED_HEADERS, &[], reply::ERR_UNSUP),
        (u32::MAX, &[7; 100], reply::ERR_UNSUP),
        (option::STARTTLS, &[], reply::ERR_POLICY),
        (option::STARTTLS, &[1], reply::ERR_INVALID),
        (option::LIST, &[0; 4], reply::ERR_INVALID),
        (option::STRUCTURED_REPLY, &[0], reply::ERR_INVALID),
        (option::SET_META_CONTEXT, &set, reply::ERR_INVALID), // structured replies were not negotiated
        (option::LIST_META_CONTEXT, &set, reply::ERR_INVALID),
        (option::GO, &[], reply::ERR_INVALID),
        (option::GO, &torn, reply::ERR_INVALID),
        (option::GO, &not_utf8, reply::ERR_INVALID),
        (option::INFO, &long_name, reply::ERR_INVALID),
        (option::INFO, &[&wanted("disk", &[])[..], &[0]].concat(), reply::ERR_INVALID),
        (option::INFO, &[0xff; 6], reply::ERR_INVALID),
        (option::GO, &wanted("nothing", &[]), reply::ERR_UNKNOWN),
        (option::INFO, &wanted("disk\0", &[]), reply::ERR_UNKNOWN),
        (option::GO, &vec![0; (64 << 10) + 1], reply::ERR_TOO_BIG),
        (99, &vec![0; 1 << 20], reply::ERR_TOO_BIG),
    ];
    for (index, (option, data, error)) in cases.iter().enumerate() {
        assert_eq!(client.refusal(*option, data), *error, "case {index}");
    }
    client.structured_replies();
    assert_eq!(client.refusal(option::SET_META_CONTEXT, &[0; 3]), reply::ERR_INVALID);
    assert_eq!(client.refusal(option::SET_META_CONTEXT, &contexts("nothing", &[])), reply::ERR_UNKNOWN);
    client.go("disk");
    client.goodbye();
}

#[test]
fn what_cannot_be_answered_ends_that_connection_alone() {
    let rig = Rig::new();
    let mut bystander = rig.simple();
    type Speech = fn(&mut Client);
    let speeches: &[Speech] = &[
        |client| client.greet_with(1 << 2),
        |client| client.greet_with(1 << 31),
        |client| {
            client.greet_with(0);
            client.option(option::LIST, &[]);
        },
        |client| {
            client.greet();
            client.option(option::EXPORT_NAME, b"nothing");
        },
        |client| {
            client.greet();
            client.option(option::EXPORT_NAME, &[0xff; 3]);
        },
        |client| {
            client.greet();
            client.send(&[0; 16]);
        },
        |client| {
            client.greet();
            client.send(b"GET / HTTP/1.1\r\nHost: disk\r\n\r\n");
        },
        |client| {
            client.greet();
            client.send(&[&b"IHAVEOPT"[..], &option::EXPORT_NAME.to_be_bytes(), &4097_u32.to_be_bytes()].concat());
        },
        |client| {
            client.greet();
            client.send(&[&b"IHAVEOPT"[..], &option::GO.to_be_bytes(), &u32::MAX.to_be_bytes()].concat());
            assert_eq!(client.option_reply(option::GO).0, reply::ERR_TOO_BIG);
        },
        |client| {
            client.greet();
            client.send(&b"IHAVEOPT"[..5]);
            client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        },
    ];
    for (index, speak) in speeches.iter().enumerate() {
        let mut client = rig.connect();
        speak(&mut client);
        client.assert_ended();
        assert_eq!(bystander.read(8, 8), rig.bytes()[8..16], "after speech {index}");
    }
    bystander.goodbye();
    rig.assert_well();
}

#[test]
fn options_without_end_end_the_connection() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.greet();
    let mut refused = 0;
    for _ in 0..1000 {
        client.send_if_heard(&[&b"IHAVEOPT"[..], &[0; 8]].concat());
        let mut header = [0; 20];
        if std::io::Read::read_exact(&mut client.stream, &mut header).is_err() {
            break;
        }
        let length = u32::from_be_bytes(header[16..].try_into().unwrap());
        client.receive_bytes(length as usize);
        refused += 1;
    }
    assert!((32..1000).contains(&refused), "{refused} options were answered");
    rig.assert_well();
}

#[test]
fn meta_contexts_are_listed_and_set_for_one_export() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.greet();
    client.structured_replies();
    let found =
        |id: u32| vec![(reply::META_CONTEXT, [id.as_bytes(), b"base:allocation"].concat()), (reply::ACK, vec![])];
    let nothing = vec![(reply::ACK, vec![])];
    for (queries, replies) in [
        (&[][..], found(0)),
        (&["base:"], found(0)),
        (&["qemu:dirty-bitmap:x", BASE_ALLOCATION], found(0)),
        (&["qemu:"], nothing.clone()),
        (&["base:allocations"], nothing.clone()),
    ] {
        assert_eq!(client.ask(option::LIST_META_CONTEXT, &contexts("disk", queries)), replies, "{queries:?}");
    }
    for (queries, replies) in [
        (&[][..], nothing.clone()),
        (&["base:"], nothing.clone()),
        (&["x:y", BASE_ALLOCATION, BASE_ALLOCATION], found(u32::from_be(1))),
    ] {
        assert_eq!(client.ask(option::SET_META_CONTEXT, &contexts("disk", queries)), replies, "{queries:?}");
    }
    client.go("");
    assert_eq!(client.status(0, 0, 4096), [(4096, 0)]);
    client.goodbye();
}

#[test]
fn a_hundred_clients_more_than_there_is_room_for_are_turned_away() {
    let rig = Rig::new();
    let mut clients: Vec<_> = (0..256).map(|_| rig.simple()).collect();
    assert_eq!(rig.server.connections(), 256);
    for _ in 0..100 {
        rig.connect().assert_ended();
    }
    assert_eq!(clients[0].read(0, 8), rig.bytes()[..8]);
    assert_eq!(clients[255].read(0, 8), rig.bytes()[..8]);
    clients.pop().unwrap().goodbye();
    rig.assert_well();
}
