use std::io::Cursor;

use bhttp::Mode;
use http_body_util::Full;

use super::*;

const PIECE_TIMEOUT: Duration = Duration::from_secs(20);

fn request() -> Request<()> {
    Request::post("https://example.org:8443/path?query=1")
        .header("accept", "*/*")
        .header("x-twice", "1")
        .header("x-twice", "2")
        .body(())
        .unwrap()
}

async fn message(head: Vec<u8>, body: &'static [u8]) -> Vec<u8> {
    let mut bytes = head;
    write_content(&mut bytes, Full::new(body), u64::MAX, PIECE_TIMEOUT).await.unwrap();
    bytes
}

async fn content(content: &mut Content<impl AsyncRead + Unpin>) -> Result<Vec<u8>, MessageError> {
    let mut whole = Vec::new();
    while let Some(piece) = content.piece().await? {
        whole.extend_from_slice(&piece);
    }
    Ok(whole)
}

/// The head and the whole content of a response.
async fn read(bytes: &[u8], cap: u64) -> Result<(Response<()>, Vec<u8>), MessageError> {
    let (response, mut body) = read_response(bytes, cap).await?;
    Ok((response, content(&mut body).await?))
}

#[tokio::test]
async fn a_request_decodes_as_encoded() {
    let bytes = message(request_head(&request()).unwrap(), b"body").await;
    let (read, mut body) = read_request(bytes.as_slice(), 4).await.unwrap();
    assert_eq!((read.method(), read.uri()), (request().method(), request().uri()));
    assert_eq!(read.headers(), request().headers());
    assert_eq!(content(&mut body).await.unwrap(), b"body");
}

#[tokio::test]
async fn messages_interoperate_with_the_bhttp_library_in_both_directions() {
    let bytes = message(request_head(&request()).unwrap(), b"body").await;
    let decoded = bhttp::Message::read_bhttp(&mut Cursor::new(&bytes)).unwrap();
    assert_eq!(decoded.control().authority(), Some(b"example.org:8443".as_slice()));
    assert_eq!(decoded.header().get(b"x-twice"), Some(b"1".as_slice()));
    assert_eq!(decoded.content(), b"body");

    let mut response = bhttp::Message::response(bhttp::StatusCode::try_from(404_u16).unwrap());
    response.put_header("etag", "1");
    response.write_content(vec![7; 100_000]);
    response.put_trailer("x-last", "1");
    let mut bytes = Vec::new();
    response.write_bhttp(Mode::IndeterminateLength, &mut bytes).unwrap();
    let (head, body) = read(&bytes, u64::MAX).await.unwrap();
    assert_eq!((head.status().as_u16(), head.headers().get("etag").unwrap().as_bytes()), (404, b"1".as_slice()));
    assert_eq!(body, vec![7; 100_000]);
}

#[tokio::test]
async fn truncated_and_oversized_messages_are_errors() {
    let head = response_head(&Response::new(())).unwrap();
    let whole = message(head, b"more than five").await;
    assert_eq!(read(&whole[..whole.len() - 2], u64::MAX).await.unwrap_err(), MessageError::Broken);
    assert_eq!(read(&whole, 5).await.unwrap_err(), MessageError::TooLarge);
    let written = write_content(&mut Vec::new(), Full::new(b"12".as_slice()), 1, PIECE_TIMEOUT).await;
    assert_eq!(written.unwrap_err(), MessageError::TooLarge);
}

#[tokio::test]
async fn malformed_messages_are_rejected() {
    let head = |method: &str, scheme: &str, authority: &str, path: &str, field: &[u8]| {
        let mut bytes = vec![2];
        for part in [method, scheme, authority, path] {
            put_number(part.len() as u64, &mut bytes);
            bytes.extend(part.as_bytes());
        }
        [bytes, field.to_vec(), vec![0]].concat()
    };
    assert!(read_request(head("GET", "http", "a.example", "/", b"\x01a\x01b").as_slice(), 0).await.is_ok());
    for bad in [
        head("G T", "http", "a.example", "/", b""),
        head("GET", "http", "", "/", b""),
        head("GET", "http", "a b", "/", b""),
        head("GET", "http", "a.example", "/a b", b""),
        head("GET", "http", "a.example", "/\r\nX: 1", b""),
        head("GET", "http", "a.example", "/", b"\x01A\x01b"),
        head("GET", "http", "a.example", "/", b"\x02:a\x01b"),
        head("GET", "http", "a.example", "/", b"\x01a\x03b\r\n"),
        vec![0, 0],
        vec![3, 0x40, 200, 0],
    ] {
        let read = read_request(bad.as_slice(), 0).await.map(|(request, _)| request);
        assert!(matches!(read, Err(MessageError::Malformed(_))), "{bad:?}: {read:?}");
    }
}

#[tokio::test]
async fn an_unread_body_stops_its_source() {
    let bytes = vec![1; 8 * MAX_PIECE];
    let head: Vec<u8> = [0x03, 0x40, 0xc8, 0x00, 0x80, 0x02, 0x00, 0x00].to_vec();
    let (mut near, far) = tokio::io::duplex(MAX_PIECE);
    let feeding = tokio::spawn(async move {
        near.write_all(&head).await.unwrap();
        near.write_all(&bytes).await.unwrap();
        near.write_all(&[0, 0]).await.unwrap();
    });
    let (_, mut content) = read_response(far, u64::MAX).await.unwrap();
    let (pipe, body) = PipedBody::of_unknown_length();
    let filling = tokio::spawn(async move { fill(&mut content, pipe, PIECE_TIMEOUT).await });
    // The body exceeds the queue. So neither task finishes before the body is read.
    tokio::task::yield_now().await;
    assert!(!feeding.is_finished() && !filling.is_finished());
    let collected = body.collect().await.unwrap().to_bytes();
    assert_eq!(collected.len(), 8 * MAX_PIECE);
    feeding.await.unwrap();
    filling.await.unwrap().unwrap();
}

#[tokio::test]
async fn single_byte_pieces_share_a_block_of_memory() {
    let (mut near, far) = tokio::io::duplex(MAX_PIECE);
    near.write_all(&response_head(&Response::new(())).unwrap()).await.unwrap();
    let (_, mut body) = read_response(far, u64::MAX).await.unwrap();
    let mut pieces = Vec::new();
    for _ in 0..100 {
        near.write_all(&[1, b'x']).await.unwrap();
        pieces.push(body.piece().await.unwrap().unwrap());
    }
    // One length byte lies between two pieces. Pieces in separate blocks would be further apart.
    assert!(pieces.windows(2).all(|pair| pair[1].as_ptr().addr() == pair[0].as_ptr().addr() + 2));
}
