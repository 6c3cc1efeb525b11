//! Connections and their workers.

use super::*;

/// All clients that send are with one of two workers; each command keeps it for some time.
#[test]
fn busy_connections_move_to_the_worker_that_has_time() {
    let fixture = Fixture::new(limits(2));
    // They are dealt out by turns.
    let mut clients: Vec<Client> = (0..8).map(|_| fixture.program()).collect();
    assert_eq!(fixture.gauges.by_worker(), [4, 4]);
    let idle: Vec<Client> = (1..5).map(|at| clients.remove(at)).collect();
    let is_over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let sending: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            let is_over = Arc::clone(&is_over);
            let send = move || {
                while !is_over.load(std::sync::atomic::Ordering::SeqCst) {
                    client.send("SET work x\n");
                    assert_eq!(client.line(), "OK");
                }
            };
            spawn("sends", send).expect("a thread")
        })
        .collect();
    fixture.wait("some have moved", |fixture| {
        fixture.gauges.by_worker()[0] < 4
    });
    assert_eq!(fixture.gauges.by_worker().iter().sum::<usize>(), 8);
    is_over.store(true, std::sync::atomic::Ordering::SeqCst);
    sending.into_iter().for_each(crate::threads::Thread::join);
    drop(idle);
    fixture.wait("all are closed", |fixture| {
        fixture.gauges.connections() == 0
    });
    assert_eq!(fixture.gauges.by_worker(), [0, 0]);
    fixture.stop();
}
