// Package differential asks the resolver, unbound and CoreDNS the same generated
// questions, has all of them ask the same scripted upstream, and compares what a
// stub resolver sees of their replies.
//
// The script (script_test.go) says what upstream answers as a function of the
// question alone, so whoever asks, when and how often is told the same. The
// questions (question_test.go) come from a seed. What is seen of a reply and which
// aspects of it are compared is in reply_test.go, with the rules that our own
// replies are held to whatever the others do.
//
// Every difference is of a class, and every class has its reason (classes_test.go),
// or the test fails. To see the classes and how often each was met:
//
//	go test -v -run TestDifferences ./test/differential -args -seed=1 -questions=10000
//
// imported_test.go compares with CoreDNS what config import makes of each Corefile
// that it is tested with: alike but where its report says otherwise.
package differential
