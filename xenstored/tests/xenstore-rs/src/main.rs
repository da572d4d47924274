//! The crate xenstore-rs against the daemon at `$XENSTORED_PATH`; prints "done" at the end.

use std::io::ErrorKind;

use futures::StreamExt;
use xenstore_rs::tokio::XsTokio;
use xenstore_rs::unix::XsUnix;
use xenstore_rs::{AsyncWatch, AsyncXs, Xs};

fn blocking() {
    let store = XsUnix::new().expect("a connection");
    store.write("/rs/a", "1").expect("written");
    store.write("/rs/b", "").expect("written");
    assert_eq!(&*store.read("/rs/a").expect("read"), "1");
    let mut names = store.directory("/rs").expect("listed");
    names.sort();
    assert_eq!(names, ["a".into(), "b".into()]);
    assert_eq!(store.read("/nope").expect_err("nothing there").kind(), ErrorKind::NotFound);
    store.rm("/rs/b").expect("removed");
    assert_eq!(store.directory("/rs").expect("listed"), ["a".into()]);
}

async fn asynchronous() {
    let store = XsTokio::new().await.expect("a connection");
    let mut watch = store.watch("/rs/watched").await.expect("watched");
    assert_eq!(watch.next().await.as_deref(), Some("/rs/watched"));
    store.write("/rs/watched/x", "1").await.expect("written");
    assert_eq!(watch.next().await.as_deref(), Some("/rs/watched/x"));
    // Requests of many tasks over one connection.
    let tasks = (0..20).map(|n| {
        let store = store.clone();
        async move {
            let (path, value) = (format!("/rs/task/{n}"), n.to_string());
            store.write(&path, &value).await.expect("written");
            assert_eq!(*store.read(&path).await.expect("read"), *value);
        }
    });
    futures::future::join_all(tasks).await;
    assert_eq!(store.directory("/rs/task").await.expect("listed").len(), 20);
    store.rm("/rs").await.expect("removed");
    assert_eq!(watch.next().await.as_deref(), Some("/rs/watched"));
}

fn main() {
    blocking();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(asynchronous());
    println!("done");
}
