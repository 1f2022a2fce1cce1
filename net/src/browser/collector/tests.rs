use super::super::message::{Message, TEXT_BYTES, read};
use super::*;

fn deliver(collector: &mut Collector, message: &str) {
    let kind = if message.contains(r#""type":"event""#) { Kind::Firefox } else { Kind::Chrome };
    read(message.as_bytes(), |message| match message {
        Message::Event(event) => BrowserEvent::read(kind, &event).into_iter().for_each(|event| collector.take(event)),
        Message::Answer(..) => panic!("an event"),
    })
    .expect("a message");
}

fn sent(id: &str, url: &str, frame: &str, more: &str) -> String {
    format!(
        r#"{{"method":"Network.requestWillBeSent","sessionId":"S","params":{{"requestId":"{id}","loaderId":"L{id}","frameId":"{frame}",
            "type":"Document","request":{{"url":"{url}","method":"GET","headers":{{}}}},"timestamp":10.0,"wallTime":1000.0{more}}}}}"#
    )
}

fn chrome(method: &str, params: &str) -> String {
    format!(r#"{{"method":"{method}","sessionId":"S","params":{params}}}"#)
}

#[test]
fn a_redirect_is_the_end_of_one_exchange_and_the_beginning_of_the_next() {
    let mut page = Collector::new("T");
    deliver(&mut page, &sent("1", "http://a.test/", "T", ""));
    assert!(page.busy() && !page.loaded());
    let redirect =
        r#","redirectResponse":{"status":302,"statusText":"Found","headers":{"Location":"/b","Set-Cookie":"a\nb"}}"#;
    deliver(&mut page, &sent("1", "http://a.test/b", "T", redirect));
    let response = r#"{"requestId":"1","response":{"status":200,"protocol":"h2","mimeType":"text/html","headers":{},
        "timing":{"requestTime":10.1,"connectStart":1,"connectEnd":6,"sslStart":3,"sslEnd":6,"sendStart":7,"sendEnd":8,
                  "receiveHeadersEnd":20}}}"#;
    deliver(&mut page, &chrome("Network.responseReceived", response));
    deliver(
        &mut page,
        &chrome("Network.loadingFinished", r#"{"requestId":"1","timestamp":10.5,"encodedDataLength":99}"#),
    );
    deliver(&mut page, &chrome("Page.lifecycleEvent", r#"{"frameId":"T","loaderId":"L1","name":"load"}"#));
    assert!(page.loaded() && !page.busy());
    let (entries, left_out) = page.finish(1_000_000.0);
    let seen: Vec<_> = entries.iter().map(|e| (e.exchange.role, e.exchange.status)).collect();
    assert_eq!((seen, left_out), (vec![(Role::Redirect, Some(302)), (Role::Document, Some(200))], 0));
    assert_eq!(entries[0].exchange.headers.len(), 3, "lines of one name are headers of their own");
    let times = entries[1].exchange.timings;
    assert_eq!((times.connect, times.tls, times.wait), (Some(2.0), Some(3.0), Some(12.0)));
    assert!((times.total.expect("ended") - 500.0).abs() < 0.001);
}

#[test]
fn a_navigation_that_comes_to_nothing_leaves_the_document_that_there_is() {
    let mut page = Collector::new("T");
    deliver(&mut page, &sent("1", "http://a.test/", "T", ""));
    deliver(&mut page, &chrome("Network.loadingFinished", r#"{"requestId":"1","timestamp":10.5}"#));
    deliver(&mut page, &chrome("Page.lifecycleEvent", r#"{"frameId":"T","loaderId":"L1","name":"load"}"#));
    deliver(&mut page, &sent("2", "http://a.test/file.zip", "T", ""));
    assert!(!page.loaded(), "there may be another document soon");
    deliver(
        &mut page,
        &chrome("Network.loadingFailed", r#"{"requestId":"2","timestamp":11,"errorText":"net::ERR_ABORTED"}"#),
    );
    assert!(page.loaded() && !page.busy());
}

#[test]
fn what_is_kept_of_a_page_is_bounded_whatever_it_does() {
    let mut page = Collector::new("T");
    let long = "x".repeat(50_000);
    for n in 0..REQUESTS + 500 {
        deliver(&mut page, &sent(&n.to_string(), &format!("http://a.test/{}", &long[..=TEXT_BYTES]), "F", ""));
        let extra = format!(r#"{{"requestId":"{n}","statusCode":200,"headers":{{"a":"{}"}}}}"#, &long[..9000]);
        deliver(&mut page, &chrome("Network.responseReceivedExtraInfo", &extra));
    }
    deliver(&mut page, &sent("data", &format!("data:image/png,{long}"), "T", ""));
    for _ in 0..=MESSAGES {
        let call = format!(r#"{{"type":"log","args":[{{"type":"string","value":"{long}"}}]}}"#);
        deliver(&mut page, &chrome("Runtime.consoleAPICalled", &call));
    }
    let headers: usize = page.wire.values().flatten().map(|(_, kept)| size_of(&kept.headers)).sum();
    assert!(headers <= KEPT_HEADER_BYTES, "{headers}");
    assert_eq!((page.console.len(), page.console[0].text.len()), (MESSAGES, MESSAGE_CHARS));
    assert_eq!((page.requests, page.entries.len()), (REQUESTS + 500, REQUESTS + 1));
    let lengths = |entry: &Entry| (entry.exchange.url.len(), entry.exchange.url_bytes);
    assert!(page.entries.iter().all(|entry| lengths(entry) == (URL_BYTES, "http://a.test/".len() + TEXT_BYTES + 1)));
    page.stop(0.0, "stopped");
    let (entries, left_out) = page.finish(0.0);
    assert_eq!(entries.len() + left_out, REQUESTS + 500);
    assert!(entries.len() <= SHOWN);
}

/// What a plugin is given of a page must fit into what one run may carry, whatever a server writes.
#[test]
fn words_of_a_response_are_short() {
    let long = "x".repeat(5000);
    let mut page = Collector::new("T");
    deliver(&mut page, &sent("1", "http://a.test/", "T", ""));
    let response = format!(
        r#"{{"requestId":"1","response":{{"status":200,"statusText":"{long}","protocol":"{long}","mimeType":"{long}"}}}}"#
    );
    deliver(&mut page, &chrome("Network.responseReceived", &response));
    let exchange = &page.entries[0].exchange;
    let length = |text: &Option<String>| text.as_ref().map(String::len);
    assert_eq!(
        (exchange.reason.len(), length(&exchange.version), length(&exchange.mime_type)),
        (PHRASE_BYTES, Some(WORD_BYTES), Some(PHRASE_BYTES))
    );
}

#[test]
fn the_console_reads_as_a_console_prints_it() {
    let mut page = Collector::new("T");
    let object = r#"{"type":"object","description":"Object","preview":{"overflow":true,"properties":[
        {"name":"a","type":"number","value":"1"},{"name":"b","type":"string","value":"x"}]}}"#;
    let array = r#"{"type":"object","subtype":"array","description":"Array(2)","preview":{"subtype":"array",
        "properties":[{"name":"0","type":"number","value":"1"},{"name":"1","type":"object","subtype":"null","value":"null"}]}}"#;
    let text = |text: &str| format!(r#"{{"type":"string","value":"{text}"}}"#);
    for (args, printed) in [
        (vec![text("plain"), text("text")], "plain text"),
        (
            vec![text("%s is %d%% %c!"), text("it"), r#"{"type":"number","value":5}"#.into(), text("color: red")],
            "it is 5% !",
        ),
        (vec![text("%s and %s"), text("one")], "one and %s"),
        (vec![object.into(), array.into()], r#"{a: 1, b: "x", …} [1, null]"#),
        (
            vec![r#"{"type":"undefined"}"#.into(), r#"{"type":"object","subtype":"null","value":null}"#.into()],
            "undefined null",
        ),
        (
            vec![
                r#"{"type":"number","unserializableValue":"NaN"}"#.into(),
                r#"{"type":"boolean","value":true}"#.into(),
            ],
            "NaN true",
        ),
        (
            vec![r#"{"type":"object","subtype":"error","description":"Error: boo\n    at x","preview":{}}"#.into()],
            "Error: boo\n    at x",
        ),
        (vec![], ""),
    ] {
        let call = format!(
            r#"{{"type":"warning","args":[{}],"stackTrace":{{"callFrames":[{{"url":"http://a/","lineNumber":0}}]}}}}"#,
            args.join(",")
        );
        deliver(&mut page, &chrome("Runtime.consoleAPICalled", &call));
        let said = page.console.pop().expect("a message");
        assert_eq!((said.text.as_str(), said.level.as_str(), said.line), (printed, "warn", Some(1)), "{args:?}");
        assert_eq!(said.url.as_deref(), Some("http://a/"));
    }
    let thrown = r#"{"exceptionDetails":{"text":"Uncaught","url":"http://a/","lineNumber":6,
        "exception":{"type":"object","subtype":"error","description":"Error: from the page\n    at http://a/:7:1"}}}"#;
    deliver(&mut page, &chrome("Runtime.exceptionThrown", thrown));
    let said = page.console.pop().expect("a message");
    assert_eq!((said.text.as_str(), said.level.as_str(), said.line), ("Error: from the page", "error", Some(7)));
}

#[test]
fn an_array_that_firefox_spells_out_is_not_read() {
    let mut page = Collector::new("T");
    let nulls = vec![r#"{"type":"null"}"#; 100_000].join(",");
    deliver(
        &mut page,
        &format!(
            r#"{{"type":"event","method":"log.entryAdded","params":{{"type":"console","method":"log","source":{{"context":"T"}},
                "args":[{{"type":"array","value":[{nulls}]}}],"level":"info","text":"Array(100000)",
                "stackTrace":{{"callFrames":[{{"url":"http://a/","lineNumber":2,"columnNumber":1,"functionName":""}}]}}}}}}"#
        ),
    );
    for (method, megabytes) in [("log.entryAdded", 22), ("network.beforeRequestSent", 20)] {
        let head = format!(r#"{{"type":"event","method":"{method}","params":{{"#);
        if let Some(event) = BrowserEvent::too_long(head.as_bytes(), megabytes << 20) {
            page.take(event);
        }
    }
    let said: Vec<_> = page.console.iter().map(|said| (said.text.as_str(), said.line)).collect();
    assert_eq!(said, [("Array(100000)", Some(3)), ("(a message of 22 MiB)", None)]);
}

#[test]
fn firefox_reports_a_document_and_its_failure() {
    let mut page = Collector::new("T");
    let event = |method: &str, more: &str| {
        format!(
            r#"{{"type":"event","method":"network.{method}","params":{{"context":"T","navigation":"N","redirectCount":0,"timestamp":5,
                "request":{{"request":"1","url":"http://a.test/","method":"GET","destination":"document","initiatorType":null,
                "timings":{{"requestTime":1000,"fetchStart":1001,"connectStart":0,"requestStart":1002,"responseStart":1005,"responseEnd":1009}}}}{more}}}}}"#
        )
    };
    deliver(&mut page, &event("beforeRequestSent", ""));
    assert!(page.busy());
    let response = r#","response":{"status":200,"statusText":"OK","protocol":"http/1.1","mimeType":"text/html","fromCache":false,
        "bytesReceived":100,"headersSize":80,"bodySize":20,"headers":[{"name":"A","value":{"type":"string","value":"b"}},
        {"name":"C","value":{"type":"base64","value":"/w=="}}]}"#;
    deliver(&mut page, &event("responseCompleted", response));
    assert!(!page.busy());
    deliver(
        &mut page,
        r#"{"type":"event","method":"browsingContext.load","params":{"context":"T","navigation":"N","url":"http://a.test/"}}"#,
    );
    assert!(page.loaded());
    let (entries, _) = page.finish(0.0);
    let exchange = &entries[0].exchange;
    assert_eq!((exchange.status, exchange.header_bytes, exchange.body_bytes), (Some(200), Some(80), Some(20)));
    assert_eq!(exchange.headers, [("a".into(), "b".into()), ("c".into(), "\u{fffd}".into())]);
    assert_eq!((exchange.timings.wait, exchange.timings.total), (Some(3.0), Some(8.0)));
}

#[test]
fn headers_are_cut_and_their_size_is_kept() {
    let mut page = Collector::new("T");
    let long = "y".repeat(10_000);
    deliver(&mut page, &sent("1", "http://a.test/", "T", ""));
    let headers = format!(r#"{{"a":"{long}","b":"{long}","c":"{long}"}}"#);
    let response = format!(r#"{{"requestId":"1","response":{{"status":200,"headers":{headers}}}}}"#);
    deliver(&mut page, &chrome("Network.responseReceived", &response));
    let exchange = &page.entries[0].exchange;
    let kept: Vec<usize> = exchange.headers.iter().map(|(_, value)| value.len()).collect();
    assert_eq!((kept, exchange.header_text_bytes), (vec![10_000, EXCHANGE_HEADER_BYTES - 10_002], 30_003));
}

#[test]
fn what_is_under_way_when_a_page_is_done_stays_open() {
    let mut page = Collector::new("T");
    deliver(&mut page, &sent("1", "http://a.test/events", "F", ""));
    deliver(&mut page, &sent("2", "http://a.test/poll", "F", ""));
    assert!(page.busy());
    let response = r#"{"requestId":"1","response":{"status":200,"mimeType":"text/event-stream","headers":{},
        "timing":{"requestTime":10.1,"connectStart":-1,"connectEnd":-1,"sslStart":-1,"sslEnd":-1,"sendStart":7,"sendEnd":8,
                  "receiveHeadersEnd":20}}}"#;
    deliver(&mut page, &chrome("Network.responseReceived", response));
    assert!(page.busy(), "there is a request without a response");
    page.entries[1].done = true;
    assert!(!page.busy(), "a stream is not waited for");
    page.entries[1].done = false;
    page.leave_open();
    let (entries, _) = page.finish(0.0);
    let seen: Vec<_> = entries.iter().map(|e| (e.exchange.open, e.exchange.status, e.error.is_some())).collect();
    assert_eq!(seen, [(true, Some(200), false), (true, None, false)]);
    let timings = entries[0].exchange.timings;
    assert_eq!((timings.wait, timings.download, timings.total), (Some(12.0), None, None));
}

#[test]
fn what_is_stopped_has_no_time_of_a_download() {
    let mut page = Collector::new("T");
    deliver(&mut page, &sent("1", "http://a.test/", "T", ""));
    let response = r#"{"requestId":"1","response":{"status":200,"headers":{},
        "timing":{"requestTime":10.1,"connectStart":-1,"connectEnd":-1,"sslStart":-1,"sslEnd":-1,"sendStart":7,"sendEnd":8,
                  "receiveHeadersEnd":20}}}"#;
    deliver(&mut page, &chrome("Network.responseReceived", response));
    page.stop(1_000_700.0, "stopped");
    let timings = page.entries[0].exchange.timings;
    assert_eq!((timings.download, timings.total), (None, Some(700.0)));
}

#[test]
fn a_websocket_is_a_request_of_its_page() {
    let mut page = Collector::new("T");
    let socket = |method: &str, more: &str| chrome(method, &format!(r#"{{"requestId":"7"{more}}}"#));
    deliver(&mut page, &socket("Network.webSocketCreated", r#","url":"ws://a.test/socket""#));
    let handshake = r#","timestamp":10.0,"wallTime":1000.0,"request":{"headers":{}}"#;
    deliver(&mut page, &socket("Network.webSocketWillSendHandshakeRequest", handshake));
    assert!(page.busy());
    let response =
        r#","timestamp":10.1,"response":{"status":101,"statusText":"Switching Protocols","headers":{"A":"b"}}"#;
    deliver(&mut page, &socket("Network.webSocketHandshakeResponseReceived", response));
    assert!(!page.busy(), "an open websocket is not waited for");
    let exchange = &page.entries[0].exchange;
    assert_eq!(
        (&*exchange.url, exchange.status, &*exchange.destination),
        ("ws://a.test/socket", Some(101), "websocket")
    );
    deliver(&mut page, &socket("Network.webSocketClosed", r#","timestamp":10.5"#));
    assert_eq!(page.entries[0].exchange.timings.total, Some(500.0));
    assert!(page.entries[0].done && page.entries[0].error.is_none());
}
