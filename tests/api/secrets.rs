//! Who may ask.

use libtest_mimic::Trial;

use crate::support::server::Server;
use crate::trials;

pub fn trials() -> Vec<Trial> {
    trials!("api::secrets":
        only_valid_secrets_are_accepted,
        a_thousand_wrong_secrets_are_slowed_down,
    )
}

fn only_valid_secrets_are_accepted() {
    let server = Server::start(&[("SCOUTER_API_SECRET", "first-secret-of-two,second-secret-of-two")]);
    for good in ["first-secret-of-two", "second-secret-of-two", "Bearer first-secret-of-two"] {
        assert_eq!(server.raw("GET", "/api/v1.0/status", &[("AUTHORIZATION", good)], None).status, 200, "{good}");
    }
    for bad in ["", "first-secret-of-tw", "first-secret-of-two,second-secret-of-two", "Basic first-secret-of-two"] {
        let answer = server.raw("GET", "/api/v1.0/status", &[("authorization", bad)], None);
        assert_eq!(answer.status, 403, "{bad}");
        assert!(answer.body["error"].is_string(), "{}", answer.body);
    }
    for path in ["/api/v1.0/status", "/api/v1.0/plugins", "/api/v1.0/tests?receipt=x", "/api/v1.0/nothing"] {
        assert_eq!(server.raw("GET", path, &[], None).status, 403, "{path}");
    }
    assert_eq!(server.raw("GET", "/healthz", &[], None).status, 200);
    assert!(!server.log().contains("first-secret"), "a secret in the log");
}

fn a_thousand_wrong_secrets_are_slowed_down() {
    let server = Server::start(&[]);
    let mut slowed = 0;
    for _ in 0..1000 {
        let answer = server.raw("GET", "/api/v1.0/status", &[("authorization", "wrong")], None);
        if answer.status == 429 {
            slowed += 1;
            assert!(answer.headers.contains_key("retry-after"));
        }
    }
    assert!(slowed > 700, "{slowed} of 1000 answered 429");
    // A wrong one uses up what is left, unless it comes just when another is allowed.
    let right_after_wrong = || {
        server.raw("GET", "/api/v1.0/status", &[("authorization", "wrong")], None);
        server.get("/api/v1.0/status")
    };
    let answer = (0..10).map(|_| right_after_wrong()).find(|answer| answer.status == 429);
    let answer = answer.expect("the right secret is not compared either");
    assert_eq!(answer.headers["retry-after"], "1");
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(server.get("/api/v1.0/status").status, 200, "after `Retry-After` the right secret works");
}
