//! What harms one connection, on purpose or not, leaves the server and everybody else as they were.

use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use blockcow_frontends::nbd::protocol::{REQUEST_MAGIC, command};
use blockcow_frontends::nbd::server::{Export, Server};

use crate::client::Client;
use crate::rig::{PATIENCE, Rig, contents};

#[test]
fn what_is_no_request_ends_that_connection_alone() {
    let rig = Rig::new();
    let mut bystander = rig.structured();
    let oversize = [&REQUEST_MAGIC.to_be_bytes()[..], &[0, 0, 0, 1], &[0; 16], &u32::MAX.to_be_bytes()].concat();
    let speeches: [&[u8]; 4] =
        [&[0; 28], &oversize, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", &[0x25, 0x60, 0x95, 0x13]];
    for speech in speeches {
        for mut client in [rig.simple(), rig.structured()] {
            client.send(speech);
            client.stream.shutdown(Shutdown::Write).unwrap();
            client.assert_ended();
            assert_eq!(bystander.status(0, 0, 4096), [(4096, 0)]);
        }
    }
    bystander.goodbye();
    assert!(rig.bytes() == contents());
    rig.assert_well();
}

#[test]
fn what_was_received_before_the_end_is_done_and_answered() {
    let rig = Rig::new();
    let mut client = rig.simple();
    let cookies: Vec<u64> = (0..100_u64)
        .map(|block| {
            let cookie = client.request(command::WRITE, 0, block * 4096, 4096);
            client.send(&[block as u8; 4096]);
            cookie
        })
        .collect();
    client.request(command::DISC, 0, 0, 0);
    let mut answered: Vec<u64> = cookies.iter().map(|_| client.simple_reply().0).collect();
    answered.sort_unstable();
    assert_eq!(answered, cookies);
    client.assert_ended();
    let bytes = rig.bytes();
    assert!((0..100).all(|block| bytes[block * 4096..][..4096] == [block as u8; 4096]));
}

#[test]
fn a_client_that_does_not_read_holds_up_only_itself() {
    let rig = Rig::new();
    let mut rude = rig.simple();
    // Far more than sockets hold, and than a connection may keep in memory.
    let cookies: Vec<u64> = (0..200).map(|_| rude.request(command::READ, 0, 0, 4 << 20)).collect();
    rig.assert_well();
    let mut expected = contents();
    expected[4096..4608].fill(0x5a);
    let mut answered: Vec<u64> = cookies
        .iter()
        .map(|_| {
            let (cookie, error) = rude.simple_reply();
            assert_eq!(error, 0);
            let data = rude.receive_bytes(4 << 20);
            assert!(data[8192..] == expected[8192..4 << 20] && data[..4096] == expected[..4096]);
            cookie
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, cookies);
    rude.goodbye();
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    let rig = Rig::new();
    for round in 0..50 {
        let mut client = rig.simple();
        for _ in 0..20 {
            client.request(command::READ, 0, 0, 1 << 20);
        }
        if round % 2 == 0 {
            client.request(command::WRITE, 0, 0, 1 << 20);
            client.send(&[0; 100]);
        }
    }
    wait_for_departure(&rig.server);
    assert!(rig.bytes() == contents(), "half a write is no write");
    rig.assert_well();
}

#[test]
fn closing_the_server_ends_all_connections_and_answers_what_it_received() {
    let rig = Rig::new();
    let (listener, mut tcp) = listening();
    rig.server.serve(listener.try_clone().unwrap().into()).unwrap();
    let mut over_tcp = tcp();
    over_tcp.greet();
    over_tcp.go("disk");
    over_tcp.write(0, &[3; 4096]);
    let mut idle = rig.connect();
    let mut client = rig.simple();
    client.write(4096, &[4; 4096]);
    rig.server.close(PATIENCE);
    assert_eq!(rig.server.connections(), 0);
    client.assert_ended();
    over_tcp.assert_ended();
    idle.receive_bytes(18);
    idle.assert_ended();
    rig.connect().assert_ended();
    assert!(rig.server.serve(listener.into()).is_err());
    assert_eq!(rig.bytes()[..8192], [[3; 4096], [4; 4096]].concat());
}

#[test]
fn a_listening_socket_outlives_the_server() {
    let rig = Rig::new();
    let (listener, mut connect) = listening();
    for _ in 0..3 {
        let server = Server::new(vec![Export::new("disk", rig.driver.clone(), false)]).unwrap();
        server.serve(listener.try_clone().unwrap().into()).unwrap();
        let mut client = connect();
        client.greet();
        client.go("");
        assert_eq!(client.read(0, 8), contents()[..8]);
        drop(server);
        client.assert_ended();
    }
}

#[test]
fn only_a_listening_stream_socket_is_served() {
    let rig = Rig::new();
    let file = rig.file();
    let (_listener, connect) = listening();
    let _ = connect;
    let connected = std::os::unix::net::UnixStream::pair().unwrap().0;
    assert!(rig.server.serve(file.into()).is_err());
    assert!(rig.server.serve(connected.into()).is_err());
    assert!(rig.server.serve(std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into()).is_err());
}

#[test]
fn names_are_told_apart() {
    let rig = Rig::new();
    let export = |name: &str| Export::new(name, rig.driver.clone(), false);
    assert!(Server::new(vec![]).is_err());
    assert!(Server::new(vec![export("a"), export("b"), export("a")]).is_err());
    assert!(Server::new(vec![export(&"x".repeat(4097))]).is_err());
}

#[test]
fn many_connections_see_each_others_writes_and_one_flush_covers_all() {
    let rig = Rig::new();
    thread::scope(|scope| {
        for number in 0..8_u64 {
            let rig = &rig;
            scope.spawn(move || {
                let mut client = rig.simple();
                for round in 0..200_u64 {
                    let offset = (round * 8 + number) * 512;
                    client.write(offset, &[number as u8; 512]);
                }
                client.goodbye();
            });
        }
    });
    let mut client = rig.simple();
    let bytes = client.read(0, 200 * 8 * 512);
    for (index, sector) in bytes.chunks(512).enumerate() {
        assert!(sector.iter().all(|&byte| byte == (index % 8) as u8), "sector {index}");
    }
    client.goodbye();
}

/// A listening socket on the loopback address, and a way to connect to it.
fn listening() -> (TcpListener, impl FnMut() -> Client) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let connect = move || {
        let mut stream = TcpStream::connect(address).unwrap();
        // The client of the tests speaks over a unix socket; two threads carry the bytes.
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut back = stream.try_clone().unwrap();
        let mut out = far.try_clone().unwrap();
        thread::spawn(move || {
            let _ = std::io::copy(&mut &far, &mut stream);
            let _ = stream.shutdown(Shutdown::Write);
        });
        thread::spawn(move || {
            let _ = std::io::copy(&mut back, &mut out);
            let _ = out.flush();
            let _ = out.shutdown(Shutdown::Both);
        });
        Client::new(near)
    };
    (listener, connect)
}

/// Waits until nobody is connected any more.
pub fn wait_for_departure(server: &Server) {
    thread::scope(|scope| {
        let (gone, departed) = channel();
        scope.spawn(move || {
            let began = std::time::Instant::now();
            while server.connections() > 0 && began.elapsed() < PATIENCE {
                thread::sleep(Duration::from_millis(1));
            }
            gone.send(server.connections()).unwrap();
        });
        assert_eq!(departed.recv(), Ok(0), "connections are left");
    });
}
